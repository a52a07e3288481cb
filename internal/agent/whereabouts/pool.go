package whereabouts

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
)

// holder is who asks for addresses: the same owner with the same interface gets the same ones.
type holder struct {
	owner     wbv1alpha1.Owner
	container string
	iface     string
}

func (h holder) allocation() wbv1alpha1.IPAllocation {
	return wbv1alpha1.IPAllocation{ContainerID: h.container, PodRef: h.owner.String(), IfName: h.iface}
}

// FullError says that a range has no free address.
type FullError struct {
	Range string
	text  string
}

func (e *FullError) Error() string { return e.text }

func (s span) full(taken int) error {
	var out []string
	for _, p := range s.leftOut {
		out = append(out, p.String())
	}
	return &FullError{s.subnet.String(), fmt.Sprintf(
		"Could not allocate IP in range: ip: %s / - %s / range: %s / excludeRanges: [%s]: no address is free, %d are taken; widen the range in the network-attachment-definition, or remove pods or virtual machines that are on the network",
		s.first, s.last, s.subnet, strings.Join(out, " "), taken)}
}

// choose gives the holder its address of the range: the one that it has, or the first that nobody has and that is not in refused.
func (s span) choose(pool map[string]wbv1alpha1.IPAllocation, h holder, refused map[netip.Addr]bool) (netip.Addr, error) {
	taken := map[netip.Addr]bool{}
	for key, a := range pool {
		address, ok := addressAt(s.subnet, key)
		if !ok {
			continue // written by somebody else
		}
		if a.PodRef == h.owner.String() && a.IfName == h.iface && !refused[address] {
			return address, nil
		}
		taken[address] = true
	}
	for a := s.first; a.IsValid() && !s.last.Less(a); a = a.Next() {
		if out, ok := s.leaves(a); ok {
			a = lastOf(out)
			continue
		}
		if !taken[a] && !refused[a] {
			return a, nil
		}
	}
	return netip.Addr{}, s.full(len(taken))
}

// leaves says which part of the range that is left out an address lies in.
func (s span) leaves(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range s.leftOut {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// keyOf is an address's key in a pool, addressAt the other way round.
func keyOf(subnet netip.Prefix, a netip.Addr) string {
	return new(big.Int).Sub(number(a), number(subnet.Masked().Addr())).String()
}

func addressAt(subnet netip.Prefix, key string) (netip.Addr, bool) {
	distance, ok := new(big.Int).SetString(key, 10)
	if !ok || distance.Sign() < 0 {
		return netip.Addr{}, false
	}
	base := subnet.Masked().Addr()
	sum := distance.Add(distance, number(base))
	if sum.BitLen() > base.BitLen() {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(sum.FillBytes(make([]byte, base.BitLen()/8)))
	return a, ok && subnet.Contains(a)
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// poolName is what the pool of a range is called, as published.
func poolName(network string, subnet netip.Prefix) string {
	return named(network, strings.NewReplacer(":", "-", "/", "-").Replace(colons(subnet.Masked().Addr())+"/"+fmt.Sprint(subnet.Bits())))
}

// reservationName is what the reservation of an address is called, as published.
func reservationName(network string, a netip.Addr) string {
	return named(network, strings.ReplaceAll(colons(a), ":", "-"))
}

func named(network, name string) string {
	if network == "" {
		return name
	}
	return network + "-" + name
}

// colons is an address in a form that neither begins nor ends with a colon: those are no names.
func colons(a netip.Addr) string {
	text := a.String()
	if strings.HasPrefix(text, ":") {
		text = "0" + text
	}
	if strings.HasSuffix(text, ":") {
		text += "0"
	}
	return text
}
