package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Range is a range that is cut into slices of equal length.
type Range struct {
	CIDR   netip.Prefix
	Length int // prefix length of a slice
}

func (r Range) count() int { return 1 << min(r.Length-r.CIDR.Bits(), 24) }

// slice is the i-th slice.
func (r Range) slice(i int) netip.Prefix {
	if r.CIDR.Addr().Is4() {
		b := r.CIDR.Masked().Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i)<<(32-r.Length))
		return netip.PrefixFrom(netip.AddrFrom4(b), r.Length)
	}
	b := r.CIDR.Masked().Addr().As16()
	for bit := 0; bit < 24 && r.Length-1-bit >= r.CIDR.Bits(); bit++ {
		if i>>bit&1 == 1 {
			at := r.Length - 1 - bit
			b[at/8] |= 0x80 >> (at % 8)
		}
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), r.Length)
}

func (r Range) has(slice netip.Prefix) bool {
	return slice.Bits() == r.Length && r.CIDR.Contains(slice.Addr()) && slice.Masked() == slice
}

// index is the place of a slice of the range.
func (r Range) index(slice netip.Prefix) int {
	b, index := slice.Addr().AsSlice(), 0
	for bit := r.CIDR.Bits(); bit < r.Length; bit++ {
		index = index<<1 | int(b[bit/8]>>(7-bit%8))&1
	}
	return index
}

// Slices gives each owner one slice per family. Where several ranges are of one family, a slice comes from the first that has one left.
type Slices struct {
	families []*rangeList
	owners   map[string][]netip.Prefix
	taken    map[netip.Prefix]string
}

// rangeList is the ranges of one family, and for each where the search goes on, so that a slice rests after it was given back.
type rangeList struct {
	ranges []Range
	next   []int
}

// NewSlices makes the book of some ranges. An owner's slices are in the order in which the families come first.
func NewSlices(ranges ...Range) *Slices {
	s := &Slices{owners: map[string][]netip.Prefix{}, taken: map[netip.Prefix]string{}}
	for _, r := range ranges {
		at := slices.IndexFunc(s.families, func(l *rangeList) bool { return l.ranges[0].CIDR.Addr().Is4() == r.CIDR.Addr().Is4() })
		if at < 0 {
			s.families = append(s.families, &rangeList{})
			at = len(s.families) - 1
		}
		s.families[at].ranges = append(s.families[at].ranges, r)
		s.families[at].next = append(s.families[at].next, 0)
	}
	return s
}

// Of are an owner's slices, nil when it has none.
func (s *Slices) Of(owner string) []netip.Prefix { return s.owners[owner] }

// Owners are all owners with their slices.
func (s *Slices) Owners() map[string][]netip.Prefix { return s.owners }

// Restore books slices that the owner had before. Later ones are searched after them.
func (s *Slices) Restore(owner string, prefixes []netip.Prefix) error {
	if len(prefixes) != len(s.families) {
		return fmt.Errorf("%s has %d slices, there are ranges of %d families", owner, len(prefixes), len(s.families))
	}
	for i, p := range prefixes {
		if s.families[i].of(p) < 0 {
			return fmt.Errorf("slice %s of %s is not a slice of %s", p, owner, s.families[i])
		}
		if other, taken := s.taken[p]; taken && other != owner {
			return fmt.Errorf("slice %s of %s belongs to %s", p, owner, other)
		}
	}
	s.Release(owner)
	for i, p := range prefixes {
		s.taken[p] = owner
		l := s.families[i]
		at := l.of(p)
		l.next[at] = max(l.next[at], l.ranges[at].index(p)+1)
	}
	s.owners[owner] = slices.Clone(prefixes)
	return nil
}

// Assign gives an owner a free slice of every family, or the ones it has.
func (s *Slices) Assign(owner string) ([]netip.Prefix, error) {
	if have := s.owners[owner]; have != nil {
		return have, nil
	}
	prefixes := make([]netip.Prefix, len(s.families))
	for i, l := range s.families {
		free, ok := s.free(l)
		if !ok {
			return nil, fmt.Errorf("every slice of %s belongs to a node; choose longer node prefixes or a larger range", l)
		}
		prefixes[i] = free
	}
	for _, p := range prefixes {
		s.taken[p] = owner
	}
	s.owners[owner] = prefixes
	return prefixes, nil
}

func (s *Slices) free(l *rangeList) (netip.Prefix, bool) {
	for i, r := range l.ranges {
		for n := range r.count() {
			at := (l.next[i] + n) % r.count()
			if p := r.slice(at); s.taken[p] == "" {
				l.next[i] = (at + 1) % r.count()
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// of is the place of the range that a slice belongs to, -1 if it is none's.
func (l *rangeList) of(slice netip.Prefix) int {
	return slices.IndexFunc(l.ranges, func(r Range) bool { return r.has(slice) })
}

// String names the ranges with the length of their slices.
func (l *rangeList) String() string {
	var texts []string
	for _, r := range l.ranges {
		texts = append(texts, fmt.Sprintf("%s (in slices of /%d)", r.CIDR, r.Length))
	}
	return strings.Join(texts, " and ")
}

// Release gives back what an owner has.
func (s *Slices) Release(owner string) {
	for _, p := range s.owners[owner] {
		delete(s.taken, p)
	}
	delete(s.owners, owner)
}
