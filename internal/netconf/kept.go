package netconf

import (
	"net/netip"
	"slices"

	"patchbay/internal/podnetworks"
)

// Kept are the addresses that a primary network keeps for itself, one per subnet: the router's, and one by which every node
// reaches its own guests. Other networks keep none.
func (n Network) Kept() (gateways, management []netip.Addr) {
	if n.Role != podnetworks.Primary || n.Topology != Layer2 {
		return nil, nil
	}
	for i, s := range n.Subnets {
		var gateway netip.Addr
		if len(n.Gateways) > 0 {
			gateway = n.Gateways[i]
		} else {
			gateway = n.free(s.CIDR)
		}
		gateways = append(gateways, gateway)
		management = append(management, n.free(s.CIDR, gateway))
	}
	return gateways, management
}

// free is the first address of a subnet that is none of the taken ones: of the ranges meant for it, or else of the subnet.
func (n Network) free(subnet netip.Prefix, taken ...netip.Addr) netip.Addr {
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
