package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var comparable = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestPoolHandsOutEveryAddressOnce(t *testing.T) {
	cases := []struct {
		subnet      string
		kept        []string
		count       int
		first, last string
	}{
		{"10.128.0.0/29", nil, 6, "10.128.0.1", "10.128.0.6"},
		{"10.128.0.0/29", []string{"10.128.0.1", "10.128.0.2"}, 4, "10.128.0.3", "10.128.0.6"},
		{"10.128.0.0/23", []string{"10.128.0.1"}, 509, "10.128.0.2", "10.128.1.254"},
		{"10.128.0.0/14", nil, 65535, "10.128.0.1", "10.128.255.255"},
		{"fd00:10:128:5::/64", []string{"fd00:10:128:5::1"}, 65534, "fd00:10:128:5::2", "fd00:10:128:5::ffff"},
		{"fd00::/125", nil, 7, "fd00::1", "fd00::7"},
	}
	for _, c := range cases {
		t.Run(c.subnet, func(t *testing.T) {
			var kept []netip.Addr
			for _, k := range c.kept {
				kept = append(kept, netip.MustParseAddr(k))
			}
			p := NewPool(netip.MustParsePrefix(c.subnet), kept...)
			seen := map[netip.Addr]bool{}
			var first, last netip.Addr
			for p.Free() > 0 {
				a, err := p.Allocate()
				if err != nil {
					t.Fatal(err)
				}
				if seen[a] {
					t.Fatalf("%s was handed out twice", a)
				}
				seen[a] = true
				if !first.IsValid() {
					first = a
				}
				last = a
			}
			if len(seen) != c.count || first.String() != c.first || last.String() != c.last {
				t.Errorf("%d addresses from %s to %s, want %d from %s to %s", len(seen), first, last, c.count, c.first, c.last)
			}
			if _, err := p.Allocate(); !errors.Is(err, ErrExhausted) {
				t.Errorf("got error %v from an empty pool, want %v", err, ErrExhausted)
			}
		})
	}
}

func TestPoolLetsAddressesRest(t *testing.T) {
	p := NewPool(netip.MustParsePrefix("10.0.0.0/29"))
	a, _ := p.Allocate()
	p.Release(a)
	if b, _ := p.Allocate(); b == a {
		t.Errorf("%s was handed out again at once", a)
	}
}

func TestPoolReserve(t *testing.T) {
	p := NewPool(netip.MustParsePrefix("10.0.0.0/29"), netip.MustParseAddr("10.0.0.1"))
	cases := []struct {
		address string
		want    error
	}{
		{"10.0.0.3", nil}, {"10.0.0.3", ErrTaken}, {"10.0.0.1", ErrTaken}, {"10.0.0.0", ErrTaken}, {"10.0.0.7", ErrTaken},
		{"10.0.0.8", ErrOutside}, {"fd00::1", ErrOutside},
	}
	for _, c := range cases {
		if err := p.Reserve(netip.MustParseAddr(c.address)); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", c.address, err, c.want)
		}
	}
	if next, _ := p.Allocate(); next.String() != "10.0.0.4" {
		t.Errorf("the next address is %s, want the one after the reserved", next)
	}
}

func ranges() []Range {
	return []Range{{netip.MustParsePrefix("10.128.0.0/14"), 23}, {netip.MustParsePrefix("fd00:10:128::/48"), 64}}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestSlices(t *testing.T) {
	s := NewSlices(ranges()...)
	assign := func(owner string, want ...string) {
		t.Helper()
		got, err := s.Assign(owner)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(prefixes(want...), got, comparable); diff != "" {
			t.Errorf("%s (-want +got):\n%s", owner, diff)
		}
	}
	assign("node-1", "10.128.0.0/23", "fd00:10:128::/64")
	assign("node-2", "10.128.2.0/23", "fd00:10:128:1::/64")
	assign("node-1", "10.128.0.0/23", "fd00:10:128::/64")
	s.Release("node-1")
	assign("node-3", "10.128.4.0/23", "fd00:10:128:2::/64")
	refused := map[string][]netip.Prefix{
		"taken":      prefixes("10.128.2.0/23", "fd00:10:128:9::/64"),
		"length":     prefixes("10.128.8.0/24", "fd00:10:128:9::/64"),
		"outside":    prefixes("10.0.8.0/23", "fd00:10:128:9::/64"),
		"one family": prefixes("10.128.8.0/23"),
	}
	for name, p := range refused {
		if err := s.Restore("node-4", p); err == nil {
			t.Errorf("%s: %v was restored", name, p)
		}
	}
	if err := s.Restore("node-4", prefixes("10.128.8.0/23", "fd00:10:128:9::/64")); err != nil {
		t.Error(err)
	}
	assign("node-5", "10.128.10.0/23", "fd00:10:128:a::/64")
}

func TestSlicesRunOut(t *testing.T) {
	s := NewSlices(Range{netip.MustParsePrefix("10.0.0.0/24"), 26})
	seen := map[netip.Prefix]bool{}
	for i := range 4 {
		got, err := s.Assign(fmt.Sprint(i))
		if err != nil || seen[got[0]] {
			t.Fatalf("slice %v, error %v; want four different ones", got, err)
		}
		seen[got[0]] = true
	}
	if _, err := s.Assign("4"); err == nil {
		t.Error("a fifth slice of four was handed out")
	}
	s.Release("2")
	if got, err := s.Assign("4"); err != nil || got[0].String() != "10.0.0.128/26" {
		t.Errorf("got %v, %v; want the slice that was given back", got, err)
	}
}

// TestLeasesNeverGiveAnAddressTwice creates, deletes and replaces pods at random, with restarts in between that know only
// what was written down, and a crash between handing out and writing down now and then.
func TestLeasesNeverGiveAnAddressTwice(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runLeases(t, rand.New(rand.NewPCG(seed, 2))) })
	}
}

func runLeases(t *testing.T, r *rand.Rand) {
	subnets := map[string][]netip.Prefix{
		"node-1": prefixes("10.0.0.0/28", "fd00:1::/124"), "node-2": prefixes("10.0.1.0/28", "fd00:2::/124"),
	}
	kept := func(s netip.Prefix) []netip.Addr { return []netip.Addr{s.Addr().Next()} }
	open := func() *Leases {
		l := NewLeases()
		for node, s := range subnets {
			l.Open(node, s, kept)
		}
		return l
	}
	l := open()
	written := map[string]Lease{} // what the API server knows
	for step := range 2000 {
		owner := fmt.Sprint("pod-", r.IntN(30))
		node := fmt.Sprint("node-", 1+r.IntN(2))
		switch r.IntN(10) {
		case 0, 1, 2:
			l.Release(owner)
			delete(written, owner)
		case 3:
			if r.IntN(10) > 0 {
				continue
			}
			l = open()
			for o, lease := range written {
				if err := l.Restore(o, lease); err != nil {
					t.Fatalf("step %d: %s cannot have its addresses back: %v", step, o, err)
				}
			}
		default:
			if w, ok := written[owner]; ok && r.IntN(2) == 0 {
				node = w.Scope // asked again
				if got, err := l.Take(owner, w.ID, node); err != nil || !slices.Equal(got.IPs, w.IPs) {
					t.Fatalf("step %d: %s had %v, got %v, %v", step, owner, w.IPs, got.IPs, err)
				}
				continue
			}
			lease, err := l.Take(owner, fmt.Sprint(step), node)
			delete(written, owner) // the pod of that name before is gone
			if err != nil && !errors.Is(err, ErrExhausted) {
				t.Fatal(err)
			}
			if err == nil && r.IntN(20) > 0 {
				written[owner] = lease
			} else {
				l.Release(owner)
			}
		}
		checkLeases(t, step, l, written, subnets)
	}
}

func checkLeases(t *testing.T, step int, l *Leases, written map[string]Lease, subnets map[string][]netip.Prefix) {
	t.Helper()
	holders := map[netip.Addr]string{}
	held := map[string]int{}
	for owner, lease := range l.leases {
		held[lease.Scope]++
		for i, ip := range lease.IPs {
			if !subnets[lease.Scope][i].Contains(ip) {
				t.Fatalf("step %d: %s on %s has %s", step, owner, lease.Scope, ip)
			}
			if other, taken := holders[ip]; taken {
				t.Fatalf("step %d: %s and %s both have %s", step, owner, other, ip)
			}
			holders[ip] = owner
		}
	}
	for owner, lease := range written {
		if got, ok := l.Of(owner); !ok || !slices.Equal(got.IPs, lease.IPs) {
			t.Fatalf("step %d: %s was given %v, the book says %v", step, owner, lease.IPs, got.IPs)
		}
	}
	for scope, pools := range l.scopes {
		for _, p := range pools {
			usable := p.size - 2
			if p.subnet.Addr().Is4() {
				usable--
			}
			if p.Free()+held[scope] != usable {
				t.Fatalf("step %d: %s: %d free and %d held of %d: addresses leak", step, p.subnet, p.Free(), held[scope], usable)
			}
		}
	}
}

// TestSlicesOfSeveralRanges: each node has one slice per family, never somebody else's, whatever comes and goes.
func TestSlicesOfSeveralRanges(t *testing.T) {
	ranges := []Range{
		{netip.MustParsePrefix("10.30.0.0/23"), 24}, {netip.MustParsePrefix("fd00:30::/62"), 64}, {netip.MustParsePrefix("10.40.0.0/24"), 25},
	}
	random := rand.New(rand.NewPCG(3, 4))
	s := NewSlices(ranges...)
	for range 2000 {
		node := fmt.Sprint("node-", random.IntN(6))
		switch random.IntN(4) {
		case 0:
			s.Release(node)
		case 1: // a restart knows what was written down
			restored := NewSlices(ranges...)
			for owner, have := range s.Owners() {
				if err := restored.Restore(owner, have); err != nil {
					t.Fatal(err)
				}
			}
			s = restored
		default:
			got, err := s.Assign(node)
			if err != nil {
				if len(s.Owners()) < 4 {
					t.Fatalf("%s has nothing while %d nodes of 4 have slices: %v", node, len(s.Owners()), err)
				}
				continue
			}
			if len(got) != 2 || !got[0].Addr().Is4() || got[1].Bits() != 64 {
				t.Fatalf("%s has %v", node, got)
			}
		}
		for a, x := range s.Owners() {
			for b, y := range s.Owners() {
				if a != b && (x[0].Overlaps(y[0]) || x[1].Overlaps(y[1])) {
					t.Fatalf("%s has %v, %s has %v", a, x, b, y)
				}
			}
		}
	}
}
