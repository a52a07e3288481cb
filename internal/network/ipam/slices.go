package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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

// Slices gives each owner one slice of every range.
type Slices struct {
	ranges []Range
	next   []int // where the search goes on, so that a slice rests after it was given back
	owners map[string][]netip.Prefix
	taken  map[netip.Prefix]string
}

// NewSlices makes the book of some ranges.
func NewSlices(ranges ...Range) *Slices {
	return &Slices{ranges: ranges, next: make([]int, len(ranges)), owners: map[string][]netip.Prefix{}, taken: map[netip.Prefix]string{}}
}

// Of are an owner's slices, nil when it has none.
func (s *Slices) Of(owner string) []netip.Prefix { return s.owners[owner] }

// Owners are all owners with their slices.
func (s *Slices) Owners() map[string][]netip.Prefix { return s.owners }

// Restore books slices that the owner had before. Later ones are searched after them.
func (s *Slices) Restore(owner string, prefixes []netip.Prefix) error {
	if len(prefixes) != len(s.ranges) {
		return fmt.Errorf("%s has %d slices, the cluster has %d ranges", owner, len(prefixes), len(s.ranges))
	}
	for i, p := range prefixes {
		if !s.ranges[i].has(p) {
			return fmt.Errorf("slice %s of %s is not a /%d of %s", p, owner, s.ranges[i].Length, s.ranges[i].CIDR)
		}
		if other, taken := s.taken[p]; taken && other != owner {
			return fmt.Errorf("slice %s of %s belongs to %s", p, owner, other)
		}
	}
	s.Release(owner)
	for i, p := range prefixes {
		s.taken[p] = owner
		s.next[i] = max(s.next[i], s.ranges[i].index(p)+1)
	}
	s.owners[owner] = slices.Clone(prefixes)
	return nil
}

// Assign gives an owner a free slice of every range, or the ones it has.
func (s *Slices) Assign(owner string) ([]netip.Prefix, error) {
	if have := s.owners[owner]; have != nil {
		return have, nil
	}
	prefixes := make([]netip.Prefix, len(s.ranges))
	for i := range s.ranges {
		free, ok := s.free(i)
		if !ok {
			return nil, errors.New("every slice of " + s.ranges[i].CIDR.String() + " belongs to a node; choose longer node prefixes or a larger range")
		}
		prefixes[i] = free
	}
	for _, p := range prefixes {
		s.taken[p] = owner
	}
	s.owners[owner] = prefixes
	return prefixes, nil
}

func (s *Slices) free(i int) (netip.Prefix, bool) {
	r := s.ranges[i]
	for n := range r.count() {
		at := (s.next[i] + n) % r.count()
		if p := r.slice(at); s.taken[p] == "" {
			s.next[i] = (at + 1) % r.count()
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Release gives back what an owner has.
func (s *Slices) Release(owner string) {
	for _, p := range s.owners[owner] {
		delete(s.taken, p)
	}
	delete(s.owners, owner)
}
