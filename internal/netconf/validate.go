package netconf

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"patchbay/internal/podnetworks"
)

// Bounds of an MTU in bytes: what IPv4 hosts must take, what IPv6 needs, and the largest packet.
const (
	minMTU4 = 576
	minMTU6 = 1280
	maxMTU  = 65536
)

// validate returns every contradiction in a network.
func (n Network) validate() error {
	return errors.Join(n.checkTopology(), n.checkSubnets(), n.checkMTU(), n.checkInside(), n.checkGateways(), n.checkPhysical())
}

func (n Network) checkTopology() error {
	primary := n.Role == podnetworks.Primary
	switch {
	case n.Topology != Layer2 && n.Topology != Layer3 && n.Topology != Localnet:
		return fmt.Errorf("topology %q is not known; write layer2, layer3 or localnet", n.Topology)
	case n.Topology == Localnet && primary:
		return errors.New("localnet topology cannot be primary; write role secondary")
	case n.Topology == Layer3 && n.Persistent:
		return errors.New("layer3 topology does not allow persistent IPs")
	case n.Topology == Localnet && len(n.Join) > 0:
		return errors.New("localnet topology does not allow specifying join-subnet as services are not supported")
	case !primary && len(n.Join) > 0:
		return errors.New("joinSubnet is only supported for primary networks")
	case (n.Topology != Layer2 || !primary) && len(n.Infrastructure)+len(n.Reserved)+len(n.Gateways) > 0:
		return errors.New("infrastructureSubnets, reservedSubnets and defaultGatewayIPs are only supported for primary layer2 networks")
	case n.Topology == Layer3 && len(n.Excluded) > 0:
		return errors.New("layer3 topology does not allow excludeSubnets")
	case len(n.Subnets) == 0 && (primary || n.Topology == Layer3):
		return fmt.Errorf("a %s network with topology %s needs subnets", n.Role, n.Topology)
	case len(n.Subnets) == 0 && n.Persistent:
		return errors.New("allowPersistentIPs needs subnets; without them the network gives out no addresses")
	}
	return nil
}

// checkSubnets wants one subnet per family, but any number in layer3, where each node has slices of them.
func (n Network) checkSubnets() error {
	var errs []error
	for i, s := range n.Subnets {
		if s.CIDR.Addr().BitLen()-s.CIDR.Bits() < 2 {
			errs = append(errs, fmt.Errorf("subnets: %s is too small for a network; choose a larger one", s.CIDR))
		}
		for _, before := range n.Subnets[:i] {
			switch {
			case before.CIDR.Overlaps(s.CIDR):
				errs = append(errs, overlap("subnet", before.CIDR, "subnet", s.CIDR))
			case n.Topology != Layer3 && before.CIDR.Addr().Is4() == s.CIDR.Addr().Is4():
				errs = append(errs, fmt.Errorf("subnets: %s and %s are of the same IP family; give one of each at most", before.CIDR, s.CIDR))
			}
		}
	}
	return errors.Join(errs...)
}

func (n Network) checkMTU() error {
	least := minMTU4
	if slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.CIDR.Addr().Is6() }) {
		least = minMTU6
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > maxMTU) {
		return fmt.Errorf("mtu %d must lie between %d and %d", n.MTU, least, maxMTU)
	}
	return nil
}

// checkInside wants every special range inside the subnets.
func (n Network) checkInside() error {
	var errs []error
	for _, list := range n.ranges() {
		if !list.inside {
			continue
		}
		for _, p := range list.prefixes {
			if len(n.Subnets) == 0 {
				errs = append(errs, fmt.Errorf("%s must be unset when subnets is unset", list.key))
			} else if !n.contains(p) {
				errs = append(errs, fmt.Errorf("%s must be subnetworks of the networks specified in the subnets field: %s is not", list.key, p))
			}
		}
	}
	for _, i := range n.Infrastructure {
		for _, r := range n.Reserved {
			if i.Overlaps(r) {
				errs = append(errs, fmt.Errorf("infrastructureSubnets and reservedSubnets must not overlap: %s and %s do", i, r))
			}
		}
	}
	return errors.Join(errs...)
}

func (n Network) contains(p netip.Prefix) bool {
	return slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.CIDR.Bits() <= p.Bits() && s.CIDR.Contains(p.Addr()) })
}

func (n Network) checkGateways() error {
	if len(n.Gateways) == 0 {
		return nil
	}
	if len(n.Gateways) != len(n.Subnets) {
		return errors.New("defaultGatewayIPs must be specified for all IP families")
	}
	var errs []error
	for i, g := range n.Gateways {
		subnet := n.Subnets[i].CIDR
		if !subnet.Contains(g) || g == subnet.Addr() || g == broadcast(subnet) {
			errs = append(errs, fmt.Errorf("defaultGatewayIPs must belong to one of the subnets specified in the subnets field: %s does not", g))
			continue
		}
		inside := func(p netip.Prefix) bool { return p.Contains(g) }
		if len(n.Infrastructure) > 0 && !slices.ContainsFunc(n.Infrastructure, inside) {
			errs = append(errs, fmt.Errorf("defaultGatewayIPs have to belong to infrastructureSubnets: %s does not", g))
		}
	}
	return errors.Join(errs...)
}

// broadcast is the last address of an IPv4 subnet, which nobody can have; IPv6 has none.
func broadcast(subnet netip.Prefix) netip.Addr {
	if subnet.Addr().Is6() {
		return netip.Addr{}
	}
	b := subnet.Masked().Addr().As4()
	for bit := subnet.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

func (n Network) checkPhysical() error {
	switch {
	case n.Topology != Localnet && n.Physical != "":
		return errors.New("physicalNetworkName is only supported for localnet topology")
	case n.Topology != Localnet && n.VLAN != 0:
		return errors.New("vlanID is only supported for localnet topology")
	case n.VLAN < 0 || n.VLAN > 4094:
		return fmt.Errorf("vlanID %d must lie between 1 and 4094; leave it out for untagged frames", n.VLAN)
	case strings.ContainsAny(n.Physical, ",:"):
		return errors.New("physicalNetworkName cannot contain `,` or `:` characters")
	}
	return nil
}

// Equal tells whether two definitions mean the same network.
func (n Network) Equal(other Network) bool {
	return reflect.DeepEqual(n, other)
}

// Mismatch is the error of a definition that names a network and says something else of it.
func Mismatch(definition, network string) error {
	return fmt.Errorf("NAD %s CNI config does not match that of network %s", definition, network)
}
