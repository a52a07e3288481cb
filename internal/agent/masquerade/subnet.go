package masquerade

import (
	"fmt"
	"net/netip"
)

// The inner networks of every guest that does not choose its own (spec/chapter9.md 9.2.1, 9.2.2). All guests having the same
// addresses is intended: they are never seen outside their pod.
const (
	defaultCIDR4 = "10.0.2.0/24"
	defaultCIDR6 = "fd10:0:2::/120"
)

// spareBits is how many host bits hold the network's address, the gateway and the guest.
const spareBits = 2

// newPair derives the inner network of one family; nil when the pod has no address of that family.
func newPair(pod netip.Addr, cidr, byDefault string) (*Pair, error) {
	if !pod.IsValid() {
		return nil, nil
	}
	if cidr == "" {
		cidr = byDefault
	}
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, fmt.Errorf("VM CIDR %q is not an address range; write it as %s", cidr, byDefault)
	}
	if prefix.Addr().Is4() != pod.Is4() {
		return nil, fmt.Errorf("VM CIDR %q is of the wrong IP family; write it as %s", cidr, byDefault)
	}
	if prefix.Addr().BitLen()-prefix.Bits() < spareBits {
		return nil, fmt.Errorf("VM CIDR subnet is too small, at least 2 host addresses are required: %s", cidr)
	}
	gateway := prefix.Masked().Addr().Next()
	return &Pair{
		Gateway: netip.PrefixFrom(gateway, prefix.Bits()),
		Guest:   gateway.Next(),
		Pod:     pod,
	}, nil
}
