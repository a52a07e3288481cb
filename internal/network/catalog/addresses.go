package catalog

import (
	"crypto/rand"
	"net"
	"net/netip"
	"slices"

	"patchbay/internal/netconf"
	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
)

// Infrastructure are the addresses that a primary network keeps for itself, one per subnet: the router's, and one for the
// nodes' management. Other networks keep none.
func Infrastructure(n netconf.Network) (gateways, management []netip.Addr) {
	if n.Role != podnetworks.Primary || n.Topology != netconf.Layer2 {
		return nil, nil
	}
	for i, s := range n.Subnets {
		var gateway netip.Addr
		if len(n.Gateways) > 0 {
			gateway = n.Gateways[i]
		} else {
			gateway = free(n, s.CIDR)
		}
		gateways = append(gateways, gateway)
		management = append(management, free(n, s.CIDR, gateway))
	}
	return gateways, management
}

// free is the first address of a subnet that is none of the taken ones: of the ranges meant for it, or else of the subnet.
func free(n netconf.Network, subnet netip.Prefix, taken ...netip.Addr) netip.Addr {
	for _, r := range append(slices.Clone(n.Infrastructure), subnet) {
		if !subnet.Overlaps(r) {
			continue
		}
		for a := first(r); r.Contains(a); a = a.Next() {
			if !slices.Contains(taken, a) && a != subnet.Addr() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// first is the first address of a range that a host can have.
func first(r netip.Prefix) netip.Addr {
	if r.Addr().BitLen()-r.Bits() >= 2 {
		return r.Addr().Next()
	}
	return r.Addr()
}

// NewSpace makes the book of a network's addresses.
func NewSpace(n netconf.Network) *ipam.Space {
	c := ipam.SpaceConfig{Never: slices.Concat(n.Excluded, n.Infrastructure), Asked: n.Reserved, NewMAC: randomMAC}
	for _, s := range n.Subnets {
		c.Subnets = append(c.Subnets, s.CIDR)
	}
	gateways, management := Infrastructure(n)
	for _, a := range slices.Concat(gateways, management) {
		c.Never = append(c.Never, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, own := range [][]netip.Addr{gateways, management} {
		if len(own) > 0 {
			c.MACs = append(c.MACs, podnetworks.MAC(own[0]))
		}
	}
	return ipam.NewSpace(c)
}

// randomMAC is a locally administered address for a network without addresses to derive one from.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
