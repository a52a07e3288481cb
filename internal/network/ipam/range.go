package ipam

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// keep marks what a range and the bitmap share, so that it is not handed out.
func (p *Pool) keep(r netip.Prefix) {
	first := 0
	if i, ok := p.index(r.Addr()); ok {
		first = i
	}
	for i := first; i < p.size; i++ {
		a := p.addr(i)
		if !p.subnet.Contains(a) || !r.Contains(a) && a.Compare(r.Addr()) > 0 {
			break
		}
		if r.Contains(a) {
			p.mark(i)
		}
	}
}

// within are the ranges of the list that are in the subnet.
func within(subnet netip.Prefix, ranges []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ranges), func(r netip.Prefix) bool { return !subnet.Overlaps(r) })
}

// firstOutside is the first address of a subnet that is in none of the ranges, or the subnet's first one.
func firstOutside(subnet netip.Prefix, ranges []netip.Prefix) netip.Addr {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	first := subnet.Addr()
	for _, r := range ranges {
		if r.Contains(first) {
			first = last(r).Next()
		}
	}
	if !subnet.Contains(first) {
		return subnet.Addr()
	}
	return first
}

// last is the last address of a range.
func last(r netip.Prefix) netip.Addr {
	b := r.Masked().Addr().AsSlice()
	for bit := r.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// broadcast is the address that no host of an IPv4 subnet has.
func broadcast(subnet netip.Prefix) netip.Addr {
	if subnet.Addr().Is6() {
		return netip.Addr{}
	}
	return last(subnet)
}

// upTo is how many addresses there are from first to last, but no more than a pool holds.
func upTo(first, last netip.Addr) int {
	a, b := first.As16(), last.As16()
	if binary.BigEndian.Uint64(a[:8]) != binary.BigEndian.Uint64(b[:8]) {
		return maxPool
	}
	return int(min(binary.BigEndian.Uint64(b[8:])-binary.BigEndian.Uint64(a[8:]), maxPool-1)) + 1
}
