package nb

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/model"
)

// TestIdentitiesDoNotChange: a change here makes every row of every running cluster a new one.
func TestIdentitiesDoNotChange(t *testing.T) {
	cases := map[Ref]string{
		{LogicalSwitchTable, "node-1"}:          "2d98bbb0-ed04-8e1c-b0cf-cab770617463",
		{LogicalSwitchPortTable, "default_web"}: "b101097a-35cd-865d-8ee1-8db770617463",
	}
	valid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for ref, want := range cases {
		if got := ref.UUID(); got != want || !valid.MatchString(got) || !Owned(got) {
			t.Errorf("%v: got %s, want %s", ref, got, want)
		}
	}
	if Owned("11111111-1111-1111-1111-111111111111") {
		t.Error("somebody else's row is taken for ours")
	}
}

// TestIdentitiesSpread: the first 32 bits are the hash that OVS and OVN find rows by.
func TestIdentitiesSpread(t *testing.T) {
	seen := map[string]bool{}
	for i := range 10000 {
		seen[Ref{LogicalSwitchPortTable, fmt.Sprint(i)}.UUID()[:8]] = true
	}
	if len(seen) < 9990 {
		t.Errorf("10000 rows have %d different hashes", len(seen))
	}
}

func TestDiffering(t *testing.T) {
	yes, no := true, false
	port := func(change func(*LogicalSwitchPort)) *LogicalSwitchPort {
		p := &LogicalSwitchPort{Name: "p", Addresses: []string{"a", "b"}, Options: map[string]string{"k": "v"}, Enabled: &yes}
		change(p)
		return p
	}
	cases := map[string]struct {
		table      string
		want, have model.Model
		columns    []string
	}{
		"equal":                    {LogicalSwitchPortTable, port(func(*LogicalSwitchPort) {}), port(func(*LogicalSwitchPort) {}), nil},
		"sets have no order":       {LogicalSwitchPortTable, port(func(*LogicalSwitchPort) {}), port(func(p *LogicalSwitchPort) { p.Addresses = []string{"b", "a"} }), nil},
		"nothing is like empty":    {LogicalSwitchPortTable, port(func(*LogicalSwitchPort) {}), port(func(p *LogicalSwitchPort) { p.PortSecurity = []string{}; p.ExternalIDs = map[string]string{} }), nil},
		"OVN's own columns":        {LogicalSwitchPortTable, port(func(*LogicalSwitchPort) {}), port(func(p *LogicalSwitchPort) { p.Up = &yes }), nil},
		"members are links":        {LogicalSwitchTable, &LogicalSwitch{Name: "s"}, &LogicalSwitch{Name: "s", Ports: []string{"x"}}, nil},
		"set, map and optional":    {LogicalSwitchPortTable, port(func(*LogicalSwitchPort) {}), port(func(p *LogicalSwitchPort) { p.Addresses = []string{"a"}; p.Options = nil; p.Enabled = &no }), []string{"addresses", "enabled", "options"}},
		"shared map, others' keys": {NBGlobalTable, &NBGlobal{Options: map[string]string{"a": "1"}}, &NBGlobal{Options: map[string]string{"a": "1", "b": "2"}}, nil},
		"shared map, our key":      {NBGlobalTable, &NBGlobal{Options: map[string]string{"a": "1"}}, &NBGlobal{Options: map[string]string{"a": "2"}}, []string{"options"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.columns, Differing(c.table, c.want, c.have)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
