package settings

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultIsValidAndSurvivesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "settings.json")
	if err := Default().Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	equal := cmp.Options{
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	if diff := cmp.Diff(Default(), got, equal); diff != "" {
		t.Errorf("settings changed in the file (-saved +loaded):\n%s", diff)
	}
}

func TestValidateNamesTheContradiction(t *testing.T) {
	cases := map[string]struct {
		change func(*Settings)
		want   string
	}{
		"overlap":    {func(s *Settings) { s.ServiceCIDRs[0] = netip.MustParsePrefix("10.129.0.0/16") }, "overlap; choose disjoint ranges"},
		"host bits":  {func(s *Settings) { s.ClusterCIDRs[0] = netip.MustParsePrefix("10.128.0.1/14") }, "has host bits set; write 10.128.0.0/14"},
		"families":   {func(s *Settings) { s.ServiceCIDRs = s.ServiceCIDRs[:1] }, "same IP families"},
		"node slice": {func(s *Settings) { s.NodePrefixLen4 = 14 }, "leaves no slices"},
		"mtu":        {func(s *Settings) { s.PodMTU = 1401 }, "podMTU 1401"},
		"no ranges":  {func(s *Settings) { s.ClusterCIDRs, s.ServiceCIDRs = nil, nil }, "want one or two ranges"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := Default()
			c.change(&s)
			err := s.Validate()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one that says %q", err, c.want)
			}
		})
	}
}
