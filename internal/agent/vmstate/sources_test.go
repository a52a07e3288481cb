package vmstate

import (
	"net"
	"net/netip"
	"testing"

	"patchbay/internal/golden"
	"patchbay/internal/qemu/qga"
)

func TestSourcesDisagree(t *testing.T) {
	ips := func(list ...string) (all []netip.Addr) {
		for _, ip := range list {
			all = append(all, netip.MustParseAddr(ip))
		}
		return all
	}
	for name, c := range map[string]struct {
		s    Sources
		want bool
	}{
		"all agree":                    {Sources{Network: ips("10.0.0.1"), Agent: ips("10.0.0.1", "fe80::1"), Observed: ips("10.0.0.1")}, false},
		"the guest says nothing":       {Sources{Network: ips("10.0.0.1", "fd00::1")}, false},
		"the guest says one family":    {Sources{Network: ips("10.0.0.1", "fd00::1"), Agent: ips("10.0.0.1", "fe80::1")}, false},
		"the guest uses more":          {Sources{Network: ips("10.0.0.1"), Agent: ips("10.0.0.9", "10.0.0.1"), Observed: ips("10.0.0.1", "10.0.0.9")}, false},
		"all that is heard is told":    {Sources{Agent: ips("10.0.0.9", "10.0.0.1"), Observed: ips("10.0.0.9")}, false},
		"the guest set its own":        {Sources{Network: ips("10.0.0.1"), Agent: ips("10.0.0.9")}, true},
		"heard without an agent":       {Sources{Network: ips("10.0.0.1"), Observed: ips("10.0.0.9")}, true},
		"the agent says other":         {Sources{Agent: ips("10.0.0.1"), Observed: ips("10.0.0.9")}, true},
		"IPv6 only":                    {Sources{Network: ips("10.0.0.1", "fd00::1"), Agent: ips("10.0.0.1", "fd00::9")}, true},
		"behind a masquerade":          {Sources{Network: ips("10.0.0.1"), Agent: ips("10.0.2.2"), Inner: true}, false},
		"an address that it gave back": {Sources{Agent: ips("10.0.0.1"), Observed: ips("10.0.0.1", "10.0.0.9")}, false},
	} {
		if got := c.s.Disagree(); got != c.want {
			t.Errorf("%s: %t, want %t: %s", name, got, c.want, c.s)
		}
	}
}

func TestSourcesStory(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	agent := func(ip string) func(*Observed) {
		return func(o *Observed) {
			o.Domain.Guest = &Guest{Interfaces: []qga.Interface{{Name: "eth1", MAC: mac.String(), Addresses: []qga.Address{{IP: ip}}}}}
		}
	}
	golden.Check(t, "txt", play([]scene{podReady, starting, running,
		{"a card on a network that gave an address", func(o *Observed) {
			i, network := bridged("blue", "blue-l2", "")
			o.VMI.Spec.Domain.Devices.Interfaces = append(o.VMI.Spec.Domain.Devices.Interfaces, i)
			o.VMI.Spec.Networks = append(o.VMI.Spec.Networks, network)
			o.Domain.NICs = append(o.Domain.NICs, NIC{Name: "blue", Network: "blue-l2", MAC: mac, Queues: 1, IPs: []netip.Addr{netip.MustParseAddr("10.10.20.1")}})
		}},
		{"the guest is heard to use another", func(o *Observed) { o.Domain.NICs[1].Observed = []netip.Addr{netip.MustParseAddr("10.10.20.99")} }},
		{"its agent says so too", agent("10.10.20.99")},
		{"its agent is gone and comes back, and has not been asked", func(o *Observed) { o.Domain.Guest = &Guest{} }},
		{"the guest does as the network said", func(o *Observed) {
			agent("10.10.20.1")(o)
			o.Domain.NICs[1].Observed = []netip.Addr{netip.MustParseAddr("10.10.20.1"), netip.MustParseAddr("10.10.20.99")}
		}},
	}))
}
