package netpolicy

import "net/netip"

// Ranges are a block in prefixes, without "!=": OVN makes one flow per bit of each exception then, times everything else in the match.
func (b Block) Ranges() []netip.Prefix {
	out := []netip.Prefix{b.CIDR.Masked()}
	for _, e := range b.Except {
		var rest []netip.Prefix
		for _, p := range out {
			rest = append(rest, without(p, e.Masked())...)
		}
		out = rest
	}
	return out
}

// without is a range less a part of it: halves that do not hold the part, down to its size.
func without(p, part netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(part):
		return []netip.Prefix{p}
	case part.Bits() <= p.Bits():
		return nil
	}
	low, high := halves(p)
	return append(without(low, part), without(high, part)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}
