package topology

import (
	"net/netip"
	"testing"

	"patchbay/internal/golden"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

func check(t *testing.T, rows []nb.Row) {
	t.Helper()
	golden.Check(t, "txt", nb.Dump(rows))
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestCluster(t *testing.T) {
	single := settings.Default()
	single.ClusterCIDRs, single.ServiceCIDRs = single.ClusterCIDRs[:1], single.ServiceCIDRs[:1]
	cases := map[string]settings.Settings{"dual": settings.Default(), "ipv4": single}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) { check(t, ClusterRows(s)) })
	}
}

func TestNode(t *testing.T) {
	cases := map[string]Node{
		"dual": {Name: "node-1", Subnets: prefixes("10.128.2.0/23", "fd00:10:128:1::/64")},
		"ipv6": {Name: "node-1", Subnets: prefixes("fd00:10:128:1::/64")},
	}
	for name, n := range cases {
		t.Run(name, func(t *testing.T) { check(t, NodeRows(n)) })
	}
}

func TestPod(t *testing.T) {
	ips := prefixes("10.128.2.5/23", "fd00:10:128:1::5/64")
	check(t, PodRows(Pod{
		Namespace: "default", Name: "web", UID: "0f1e", Node: "node-1",
		Network: podnetworks.Network{IPs: ips, MAC: podnetworks.MAC(ips[0].Addr())},
	}))
}
