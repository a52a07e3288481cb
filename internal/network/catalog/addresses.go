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

// Space is the book of a network's addresses: *ipam.Space, or *ipam.Sliced for a layer3 network.
type Space interface {
	Take(r ipam.Request) (ipam.Addresses, error)
	Leave(user, holder string) (freed bool)
	Pin(holder string, ips []netip.Addr) error
	KeepMAC(holder, owner string, mac net.HardwareAddr) error
	Unpin(holder string) (freed bool)
	InUse() bool
}

// NewSpace makes the book of a network's addresses.
func NewSpace(n netconf.Network) Space {
	if n.Topology == netconf.Layer3 {
		return ipam.NewSliced(slicedConfig)
	}
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

// slicedConfig keeps the first two addresses of a slice, as on the default network: the router has the first, and the second is the
// node's own by convention.
func slicedConfig(subnets []netip.Prefix) ipam.SpaceConfig {
	c := ipam.SpaceConfig{Subnets: subnets, NewMAC: randomMAC}
	for i, subnet := range subnets {
		for _, a := range []netip.Addr{podnetworks.Gateway(subnet), podnetworks.Management(subnet)} {
			c.Never = append(c.Never, netip.PrefixFrom(a, a.BitLen()))
		}
		if i == 0 {
			c.MACs = append(c.MACs, podnetworks.MAC(podnetworks.Gateway(subnet)))
		}
	}
	return c
}

// Ranges are what the nodes' slices of a layer3 network are cut from.
func Ranges(n netconf.Network) []ipam.Range {
	var ranges []ipam.Range
	for _, s := range n.Subnets {
		ranges = append(ranges, ipam.Range{CIDR: s.CIDR, Length: s.HostBits})
	}
	return ranges
}

// randomMAC is a locally administered address for a network without addresses to derive one from.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
