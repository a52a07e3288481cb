package netconf

import (
	"errors"
	"fmt"
	"net/netip"

	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

// Ranges that the cluster uses itself beside those of its settings.
var (
	// ClusterJoin is where tenants' routers meet the cluster router.
	ClusterJoin = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd98::/64")}
	// ClusterEntry holds one address for each node, under which it reaches tenants' services.
	ClusterEntry = []netip.Prefix{netip.MustParsePrefix("100.65.0.0/16"), netip.MustParsePrefix("fd99::/64")}
	// Masquerade is what a host and the overlay use between themselves.
	Masquerade = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/17"), netip.MustParsePrefix("fd69::/112")}
)

// kinds are ranges of one purpose.
type kinds struct {
	kind, key string
	inside    bool // must lie inside the subnets
	prefixes  []netip.Prefix
}

// ranges are the network's lists of ranges except the subnets.
func (n Network) ranges() []kinds {
	return []kinds{
		{"join subnet", "joinSubnet", false, n.Join}, {"transit subnet", "transitSubnet", false, n.Transit},
		{"excluded subnet", "excludeSubnets", true, n.Excluded}, {"reserved subnet", "reservedSubnets", true, n.Reserved},
		{"infrastructure subnet", "infrastructureSubnets", true, n.Infrastructure},
	}
}

// CheckCluster returns every way in which a network does not fit into its cluster: ranges that the cluster uses, or an MTU
// that its tunnels do not carry.
func (n Network) CheckCluster(s settings.Settings) error {
	cluster := []kinds{
		{kind: "cluster subnet", prefixes: s.ClusterCIDRs}, {kind: "service subnet", prefixes: s.ServiceCIDRs},
		{kind: "cluster join subnet", prefixes: ClusterJoin}, {kind: "masquerade subnet", prefixes: Masquerade},
	}
	var errs []error
	own := n.disjoint()
	for i, a := range own {
		for _, b := range append(own[i+1:len(own):len(own)], cluster...) {
			errs = append(errs, n.overlaps(a, b)...)
		}
	}
	if n.Role == podnetworks.Primary {
		// The join subnets may: their default does, and nothing here has addresses of them.
		errs = append(errs, n.overlaps(own[0], kinds{kind: "cluster entry subnet", prefixes: ClusterEntry})...)
	}
	if n.Topology != Localnet && n.MTU > s.FabricMTU-settings.OverlayOverhead {
		errs = append(errs, fmt.Errorf("mtu %d is too large for the nodes' network of MTU %d; choose %d or less", n.MTU, s.FabricMTU, s.FabricMTU-settings.OverlayOverhead))
	}
	return errors.Join(errs...)
}

// disjoint are the network's ranges that may overlap neither each other nor the cluster's.
func (n Network) disjoint() []kinds {
	subnets := kinds{kind: "subnet"}
	for _, s := range n.Subnets {
		subnets.prefixes = append(subnets.prefixes, s.CIDR)
	}
	return append([]kinds{subnets}, n.ranges()[:2]...)
}

func (n Network) overlaps(a, b kinds) []error {
	var errs []error
	for _, p := range a.prefixes {
		for _, q := range b.prefixes {
			if p.Overlaps(q) && !n.exempt(p, q) {
				errs = append(errs, overlap(a.kind, p, b.kind, q))
			}
		}
	}
	return errs
}

// exempt tells whether all that two ranges share is excluded from the network.
func (n Network) exempt(p, q netip.Prefix) bool {
	shared := p
	if q.Bits() > p.Bits() {
		shared = q
	}
	for _, e := range n.Excluded {
		if e.Bits() <= shared.Bits() && e.Contains(shared.Addr()) {
			return true
		}
	}
	return false
}

func overlap(kind string, p netip.Prefix, other string, q netip.Prefix) error {
	return fmt.Errorf("%s %q overlaps %s %q", kind, p, other, q)
}
