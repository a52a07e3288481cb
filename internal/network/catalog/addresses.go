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

// NewSpace makes the book of a network's addresses.
func NewSpace(n netconf.Network) *ipam.Space {
	c := ipam.SpaceConfig{Never: slices.Concat(n.Excluded, n.Infrastructure), Asked: n.Reserved, NewMAC: randomMAC}
	for _, s := range n.Subnets {
		c.Subnets = append(c.Subnets, s.CIDR)
	}
	gateways, management := n.Kept()
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
