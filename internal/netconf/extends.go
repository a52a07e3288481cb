package netconf

import "slices"

// Extends tells whether a layer3 network is another one with further ranges of the same families: nothing changes for who is on it.
func (n Network) Extends(small Network) bool {
	if n.Topology != Layer3 || len(n.Subnets) <= len(small.Subnets) {
		return false
	}
	has := func(list []Subnet, s Subnet) bool { return slices.Contains(list, s) }
	for _, s := range small.Subnets {
		if !has(n.Subnets, s) {
			return false
		}
	}
	for _, s := range n.Subnets {
		if !slices.ContainsFunc(small.Subnets, func(old Subnet) bool { return old.CIDR.Addr().Is4() == s.CIDR.Addr().Is4() }) {
			return false
		}
	}
	n.Subnets = small.Subnets
	return n.Equal(small)
}
