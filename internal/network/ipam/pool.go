// Package ipam hands out addresses: slices of a cluster's ranges to nodes, and addresses of a slice to pods. It is pure
// bookkeeping in memory; whoever uses it records the result where it survives a restart and restores it before anything new
// is handed out.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// Errors that callers tell users, in the words they know from OVN-Kubernetes.
var (
	ErrExhausted = errors.New("subnet address pool exhausted")
	ErrTaken     = errors.New("provided IP is already allocated")
	ErrOutside   = errors.New("provided IP is not in the valid range")
	ErrKept      = errors.New("provided IP belongs to the network itself")
)

// maxPool bounds the size of a pool: of a larger subnet only the first addresses are handed out.
const maxPool = 1 << 16

// Pool hands out the addresses of one subnet, each after the last one, so that an address that was given back rests as long
// as possible before somebody else has it.
type Pool struct {
	subnet netip.Prefix
	base   netip.Addr // of the bitmap
	used   []uint64   // bitmap
	size   int
	free   int
	next   int

	never  []netip.Prefix      // nobody has them
	asked  []netip.Prefix      // only who asks for them
	beside map[netip.Addr]bool // taken addresses that the bitmap does not hold: asked ones, and those beyond its end
}

// NewPool makes a pool of a subnet without its network address, without the broadcast address of IPv4, and without the
// addresses that are kept for other uses.
func NewPool(subnet netip.Prefix, kept ...netip.Addr) *Pool {
	subnet = subnet.Masked()
	p := newPool(subnet, subnet.Addr(), upTo(subnet.Addr(), last(subnet)))
	for _, a := range kept {
		if i, ok := p.index(a); ok {
			p.mark(i)
		}
	}
	return p
}

func newPool(subnet netip.Prefix, base netip.Addr, size int) *Pool {
	p := &Pool{subnet: subnet, base: base, used: make([]uint64, (size+63)/64), size: size, free: size, beside: map[netip.Addr]bool{}}
	for _, a := range []netip.Addr{subnet.Addr(), broadcast(subnet)} {
		if i, ok := p.index(a); ok {
			p.mark(i)
		}
	}
	return p
}

// NewPoolWithout makes a pool of a subnet in which nobody gets an address of some ranges, and an address of others only who asks
// for it. The addresses that it hands out by itself begin after the ranges that stand at the subnet's beginning.
func NewPoolWithout(subnet netip.Prefix, never, asked []netip.Prefix) *Pool {
	subnet = subnet.Masked()
	base := firstOutside(subnet, slices.Concat(never, asked))
	p := newPool(subnet, base, upTo(base, last(subnet)))
	p.never, p.asked = within(subnet, never), within(subnet, asked)
	for _, r := range slices.Concat(p.never, p.asked) {
		p.keep(r)
	}
	return p
}

// Allocate takes a free address.
func (p *Pool) Allocate() (netip.Addr, error) {
	if p.free == 0 {
		return netip.Addr{}, fmt.Errorf("%s: %w", p.subnet, ErrExhausted)
	}
	i := p.firstFree(p.next, p.size)
	if i < 0 {
		i = p.firstFree(0, p.next)
	}
	p.mark(i)
	p.next = (i + 1) % p.size
	return p.addr(i), nil
}

// Reserve takes a certain address. Later allocations go on after it.
func (p *Pool) Reserve(a netip.Addr) error {
	contains := func(r netip.Prefix) bool { return r.Contains(a) }
	i, ok := p.index(a)
	switch {
	case !p.subnet.Contains(a):
		return fmt.Errorf("%s: %w. The range of valid IPs is %s", a, ErrOutside, p.subnet)
	case slices.ContainsFunc(p.never, contains):
		return fmt.Errorf("%s: %w", a, ErrKept)
	case !ok || slices.ContainsFunc(p.asked, contains):
		return p.reserveBeside(a)
	}
	if p.isUsed(i) {
		return fmt.Errorf("%s: %w", a, ErrTaken)
	}
	p.mark(i)
	p.next = max(p.next, (i+1)%p.size)
	return nil
}

func (p *Pool) reserveBeside(a netip.Addr) error {
	if p.beside[a] || a == p.subnet.Addr() || a == broadcast(p.subnet) {
		return fmt.Errorf("%s: %w", a, ErrTaken)
	}
	p.beside[a] = true
	return nil
}

// Release gives back an address that Allocate or Reserve took.
func (p *Pool) Release(a netip.Addr) {
	if p.beside[a] {
		delete(p.beside, a)
		return
	}
	if i, ok := p.index(a); ok && p.isUsed(i) {
		p.used[i/64] &^= 1 << (i % 64)
		p.free++
	}
}

// Free is how many addresses are left.
func (p *Pool) Free() int { return p.free }

func (p *Pool) isUsed(i int) bool { return p.used[i/64]&(1<<(i%64)) != 0 }

func (p *Pool) mark(i int) {
	if !p.isUsed(i) {
		p.used[i/64] |= 1 << (i % 64)
		p.free--
	}
}

// firstFree is the first free index in [from, to), or -1.
func (p *Pool) firstFree(from, to int) int {
	for i := from; i < to; {
		word := ^p.used[i/64] >> (i % 64)
		if word == 0 {
			i = (i/64 + 1) * 64
			continue
		}
		if i += bits.TrailingZeros64(word); i < to {
			return i
		}
	}
	return -1
}

// addr and index translate between addresses and places in the bitmap.
func (p *Pool) addr(i int) netip.Addr {
	if p.base.Is4() {
		b := p.base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i))
		return netip.AddrFrom4(b)
	}
	b := p.base.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+uint64(i))
	return netip.AddrFrom16(b)
}

func (p *Pool) index(a netip.Addr) (int, bool) {
	if !p.subnet.Contains(a) || a.Less(p.base) {
		return 0, false
	}
	var offset uint64
	if a.Is4() {
		x, base := a.As4(), p.base.As4()
		offset = uint64(binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(base[:]))
	} else {
		x, base := a.As16(), p.base.As16()
		if binary.BigEndian.Uint64(x[:8]) != binary.BigEndian.Uint64(base[:8]) {
			return 0, false
		}
		offset = binary.BigEndian.Uint64(x[8:]) - binary.BigEndian.Uint64(base[8:])
	}
	return int(offset), offset < uint64(p.size)
}
