package netpolicy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func block(cidr string, except ...string) Block {
	b := Block{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return b
}

func TestRangesOfABlock(t *testing.T) {
	cases := map[string]struct {
		block Block
		want  []string
	}{
		"whole":             {block("10.0.0.0/8"), []string{"10.0.0.0/8"}},
		"host bits":         {block("10.1.2.3/8"), []string{"10.0.0.0/8"}},
		"one half":          {block("10.0.0.0/8", "10.0.0.0/9"), []string{"10.128.0.0/9"}},
		"middle":            {block("10.0.0.0/30", "10.0.0.1/32"), []string{"10.0.0.0/32", "10.0.0.2/31"}},
		"two":               {block("10.0.0.0/30", "10.0.0.1/32", "10.0.0.2/32"), []string{"10.0.0.0/32", "10.0.0.3/32"}},
		"outside":           {block("10.0.0.0/30", "192.0.2.0/24"), []string{"10.0.0.0/30"}},
		"other family":      {block("10.0.0.0/30", "::/0"), []string{"10.0.0.0/30"}},
		"everything":        {block("10.0.0.0/30", "0.0.0.0/0"), nil},
		"six":               {block("fd00::/126", "fd00::3/128"), []string{"fd00::/127", "fd00::2/128"}},
		"exceptions nested": {block("10.0.0.0/29", "10.0.0.4/30", "10.0.0.6/31"), []string{"10.0.0.0/30"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range c.block.Ranges() {
				got = append(got, p.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRangesHoldExactlyTheBlock compares with the definition for every address of a small range.
func TestRangesHoldExactlyTheBlock(t *testing.T) {
	b := block("10.0.0.0/24", "10.0.0.16/28", "10.0.0.77/32", "10.0.0.128/26")
	for a := b.CIDR.Addr(); b.CIDR.Contains(a); a = a.Next() {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if got, want := slices.ContainsFunc(b.Ranges(), in), !slices.ContainsFunc(b.Except, in); got != want {
			t.Errorf("%s: in %v, want %v", a, got, want)
		}
	}
}
