package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/podnetworks"
)

func addresses(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func mac(text string) net.HardwareAddr {
	m, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

func TestPoolWithout(t *testing.T) {
	cases := map[string]struct {
		subnet       string
		never, asked []string
		first        []string // what it hands out at first
		free         int
	}{
		"gateway":               {"10.20.0.0/29", []string{"10.20.0.1/32", "10.20.0.2/32"}, nil, []string{"10.20.0.3", "10.20.0.4"}, 4},
		"asked for":             {"10.20.0.0/28", []string{"10.20.0.1/32"}, []string{"10.20.0.0/29"}, []string{"10.20.0.8", "10.20.0.9"}, 7},
		"in the middle":         {"10.20.0.0/28", []string{"10.20.0.2/31"}, nil, []string{"10.20.0.1", "10.20.0.4"}, 12},
		"beginning of much":     {"10.0.0.0/8", []string{"10.0.0.0/9"}, []string{"10.128.0.0/10"}, []string{"10.192.0.0", "10.192.0.1"}, 65536},
		"beginning of a lot":    {"fd00::/64", []string{"fd00::/72"}, nil, []string{"fd00:0:0:0:100::", "fd00:0:0:0:100::1"}, 65536},
		"nearly everything":     {"10.0.0.0/8", []string{"10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/11", "10.224.0.0/12", "10.240.0.0/13", "10.248.0.0/14", "10.252.0.0/15", "10.254.0.0/16", "10.255.0.0/17", "10.255.128.0/18"}, nil, []string{"10.255.192.0"}, 16383},
		"other family's ranges": {"10.20.0.0/29", []string{"fd00::/64"}, []string{"fd01::/64"}, []string{"10.20.0.1"}, 6},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := NewPoolWithout(netip.MustParsePrefix(c.subnet), prefixes(c.never...), prefixes(c.asked...))
			if p.Free() != c.free {
				t.Errorf("%d are free, want %d", p.Free(), c.free)
			}
			for _, want := range c.first {
				if got, err := p.Allocate(); err != nil || got != netip.MustParseAddr(want) {
					t.Errorf("got %v, %v; want %s", got, err, want)
				}
			}
			for p.Free() > 0 {
				got, err := p.Allocate()
				if err != nil || !p.subnet.Contains(got) {
					t.Fatalf("got %v, %v", got, err)
				}
			}
		})
	}
}

func TestPoolGivesWhatIsAskedFor(t *testing.T) {
	p := NewPoolWithout(netip.MustParsePrefix("10.0.0.0/8"), prefixes("10.0.0.1/32"), prefixes("10.1.0.0/24"))
	for _, c := range []struct {
		address string
		want    error
	}{
		{"10.1.0.7", nil}, {"10.1.0.7", ErrTaken}, {"10.200.0.1", nil}, {"10.200.0.1", ErrTaken}, {"10.0.0.1", ErrKept},
		{"10.0.0.0", ErrTaken}, {"10.255.255.255", ErrTaken}, {"11.0.0.1", ErrOutside}, {"10.0.0.9", nil}, {"10.0.0.9", ErrTaken},
	} {
		if err := p.Reserve(netip.MustParseAddr(c.address)); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", c.address, err, c.want)
		}
	}
	for _, a := range addresses("10.1.0.7", "10.200.0.1", "10.0.0.9") {
		p.Release(a)
		if err := p.Reserve(a); err != nil {
			t.Errorf("%s was given back: %v", a, err)
		}
	}
}

// small is a network of both families with room for eight.
func small() *Space {
	next := uint32(0)
	return NewSpace(SpaceConfig{
		Subnets: prefixes("10.20.0.0/28", "fd00:20::/124"),
		Never:   prefixes("10.20.0.1/32", "10.20.0.2/32", "fd00:20::1/128", "fd00:20::2/128"),
		Asked:   prefixes("10.20.0.12/30", "fd00:20::c/126"), MACs: []net.HardwareAddr{podnetworks.MAC(netip.MustParseAddr("10.20.0.1"))},
		NewMAC: func() net.HardwareAddr {
			next++
			return binary.BigEndian.AppendUint32([]byte{2, 0}, next)
		},
	})
}

func TestSpace(t *testing.T) {
	s := small()
	take := func(r Request, want ...string) {
		t.Helper()
		got, err := s.Take(r)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(addresses(want...), got.IPs, comparable); diff != "" {
			t.Errorf("%s (-want +got):\n%s", r.Holder, diff)
		}
		wantMAC := podnetworks.MAC(got.IPs[0])
		if r.MAC != nil {
			wantMAC = r.MAC
		}
		if got.MAC.String() != wantMAC.String() {
			t.Errorf("%s: MAC %s, want %s", r.Holder, got.MAC, wantMAC)
		}
	}
	refuse := func(r Request, want error) {
		t.Helper()
		if got, err := s.Take(r); !errors.Is(err, want) {
			t.Errorf("%s: got %v and error %v, want %v", r.Holder, got, err, want)
		}
	}
	wish := func(ips ...string) Addresses { return Addresses{IPs: addresses(ips...)} }

	take(Request{Holder: "nic", User: "pod-1"}, "10.20.0.3", "fd00:20::3")
	take(Request{Holder: "nic", User: "pod-2"}, "10.20.0.3", "fd00:20::3")
	take(Request{Holder: "other", User: "pod-3"}, "10.20.0.4", "fd00:20::4")
	take(Request{Holder: "asked", User: "pod-4", Addresses: wish("fd00:20::d", "10.20.0.13")}, "10.20.0.13", "fd00:20::d")
	take(Request{Holder: "asked", User: "pod-4", Addresses: wish("10.20.0.13", "fd00:20::d")}, "10.20.0.13", "fd00:20::d")
	refuse(Request{Holder: "asked", User: "pod-4", Addresses: wish("10.20.0.14", "fd00:20::d")}, ErrOverride)
	refuse(Request{Holder: "taken", User: "pod-5", Addresses: wish("10.20.0.13", "fd00:20::e")}, ErrTaken)
	refuse(Request{Holder: "taken", User: "pod-5", Addresses: wish("10.20.0.14", "fd00:20::d")}, ErrTaken)
	take(Request{Holder: "no longer taken", User: "pod-5", Addresses: wish("10.20.0.14", "fd00:20::e")}, "10.20.0.14", "fd00:20::e")
	refuse(Request{Holder: "gateway", User: "pod-6", Addresses: wish("10.20.0.1", "fd00:20::f")}, ErrKept)
	refuse(Request{Holder: "one", User: "pod-6", Addresses: wish("10.20.0.15")}, ErrFamilies)
	refuse(Request{Holder: "two of one", User: "pod-6", Addresses: wish("10.20.0.9", "10.20.0.8")}, ErrFamilies)

	own := Addresses{MAC: mac("02:00:00:00:00:aa")}
	take(Request{Holder: "mac", User: "pod-7", Owner: "red/vm", Addresses: own}, "10.20.0.5", "fd00:20::5")
	refuse(Request{Holder: "mac 2", User: "pod-8", Owner: "red/vm2", Addresses: own}, ErrMACTaken)
	refuse(Request{Holder: "gateway's MAC", User: "pod-8", Addresses: Addresses{MAC: mac("0a:58:0a:14:00:01")}}, ErrMACTaken)
	refuse(Request{Holder: "nic", User: "pod-1", Addresses: own}, ErrOverride)
	take(Request{Holder: "mac 2", User: "pod-8", Owner: "red/vm", Addresses: own}, "10.20.0.8", "fd00:20::8")
	// Somebody wished for the MAC that the next address would have.
	take(Request{Holder: "derived", User: "pod-9", Addresses: Addresses{MAC: mac("0a:58:0a:14:00:0a")}}, "10.20.0.9", "fd00:20::9")
	take(Request{Holder: "passes over", User: "pod-10"}, "10.20.0.11", "fd00:20::b")

	if s.Leave("pod-1", "nic") {
		t.Error("a user left and took the addresses of the other")
	}
	if s.Leave("pod-2", "other") || !s.Leave("pod-2", "nic") {
		t.Error("the last user left and the addresses stayed")
	}
	if err := s.Pin("other", addresses("10.20.0.4", "fd00:20::5")); !errors.Is(err, ErrOverride) {
		t.Errorf("got error %v", err)
	}
	if err := s.Pin("other", addresses("10.20.0.4", "fd00:20::4")); err != nil {
		t.Error(err)
	}
	if s.Leave("pod-3", "other") {
		t.Error("pinned addresses went with their last user")
	}
	refuse(Request{Holder: "thief", User: "pod-12", Addresses: Addresses{MAC: mac("0a:58:0a:14:00:04")}}, ErrMACTaken)
	take(Request{Holder: "other", User: "pod-11", Addresses: own}.ownedBy("red/vm"), "10.20.0.4", "fd00:20::4")
	if s.Unpin("other") || !s.Leave("pod-11", "other") {
		t.Error("the addresses did not go with the last user after the pin")
	}
}

func (r Request) ownedBy(owner string) Request {
	r.Owner = owner
	return r
}

func TestSpaceWithoutAddresses(t *testing.T) {
	s := NewSpace(SpaceConfig{NewMAC: func() func() net.HardwareAddr {
		n := byte(0)
		return func() net.HardwareAddr { n++; return net.HardwareAddr{2, 0, 0, 0, 0, n / 2} }
	}()})
	seen := map[string]bool{}
	for i := range 20 {
		got, err := s.Take(Request{Holder: fmt.Sprint(i), User: fmt.Sprint(i)})
		if err != nil || len(got.IPs) > 0 || seen[got.MAC.String()] {
			t.Fatalf("got %v, %v", got, err)
		}
		seen[got.MAC.String()] = true
	}
	if _, err := s.Take(Request{Holder: "x", User: "x", Addresses: Addresses{IPs: addresses("10.0.0.1")}}); !errors.Is(err, ErrFamilies) {
		t.Errorf("got error %v", err)
	}
}

// TestSpaceNeverGivesAnAddressTwice lets pods and machines come and go at random, with claims that keep addresses, with wishes,
// and with restarts that know only what was written down: now and then one comes between handing out and writing down.
func TestSpaceNeverGivesAnAddressTwice(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &world{t: t, r: rand.New(rand.NewPCG(seed, 5)), s: small(), users: map[string]written{}, claims: map[string]written{}}
			for w.step = range 1500 {
				w.act()
				w.check()
			}
			w.end()
		})
	}
}

// written is what a pod's annotation says.
type written struct {
	holder, owner string
	Addresses
}

// world is a space beside what the API server knows.
type world struct {
	t      *testing.T
	r      *rand.Rand
	s      *Space
	step   int
	users  map[string]written
	claims map[string]written // by holder
}

func (w *world) act() {
	user := fmt.Sprint("pod-", w.r.IntN(12))
	switch have, lives := w.users[user]; {
	case w.r.IntN(100) == 0:
		w.restart()
	case lives && w.r.IntN(2) == 0:
		w.s.Leave(user, have.holder)
		delete(w.users, user)
	case lives:
		again, err := w.s.Take(Request{Holder: have.holder, User: user, Owner: have.owner})
		if err != nil || !sameAddresses(again.IPs, have.IPs) || again.MAC.String() != have.MAC.String() {
			w.t.Fatalf("step %d: %s had %v and has %v, %v", w.step, user, have.Addresses, again, err)
		}
	case w.r.IntN(8) == 0:
		w.removeClaim()
	default:
		w.join(user)
	}
}

// join is a new pod, of its own or of one of a few machines, some of which have a claim.
func (w *world) join(user string) {
	machine := w.r.IntN(4)
	r := Request{Holder: "pod/" + user + fmt.Sprint(w.step), User: user, Owner: "red/" + user}
	if w.r.IntN(2) == 0 {
		r.Holder, r.Owner = fmt.Sprint("machine-", machine), fmt.Sprint("red/vm-", machine)
	}
	if w.r.IntN(4) == 0 {
		n := byte(w.r.IntN(16))
		r.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, n}), netip.MustParseAddr(fmt.Sprintf("fd00:20::%x", w.r.IntN(16)))}
	}
	if w.r.IntN(4) == 0 {
		r.MAC = net.HardwareAddr{0x0a, 0x58, 10, 20, 0, byte(w.r.IntN(16))}
	}
	got, err := w.s.Take(r)
	if err != nil {
		return
	}
	if machine < 2 && r.Holder == fmt.Sprint("machine-", machine) {
		w.claim(r, got)
	}
	if w.r.IntN(15) == 0 {
		w.restart() // before the pod's annotation was written
		return
	}
	w.users[user] = written{r.Holder, r.Owner, got}
}

// claim writes down what a machine has. It finds what it had, unless it wished for another MAC.
func (w *world) claim(r Request, got Addresses) {
	had, claimed := w.claims[r.Holder]
	if claimed && r.MAC == nil && got.MAC.String() != had.MAC.String() {
		w.t.Fatalf("step %d: %s had %s and has %s", w.step, r.Holder, had.MAC, got.MAC)
	}
	if err := w.s.Pin(r.Holder, got.IPs); err != nil {
		w.t.Fatal(err)
	}
	w.claims[r.Holder] = written{r.Holder, r.Owner, got}
}

func (w *world) removeClaim() {
	for holder := range w.claims {
		delete(w.claims, holder)
		w.s.Unpin(holder)
		return
	}
}

func (w *world) restart() {
	w.s = small()
	for holder, had := range w.claims {
		if err := errors.Join(w.s.Pin(holder, had.IPs), w.s.KeepMAC(holder, had.owner, had.MAC)); err != nil {
			w.t.Fatalf("step %d: claim %s: %v", w.step, holder, err)
		}
	}
	for user, have := range w.users {
		if _, err := w.s.Take(Request{Holder: have.holder, User: user, Owner: have.owner, Addresses: have.Addresses}); err != nil {
			w.t.Fatalf("step %d: %s cannot have %v back: %v", w.step, user, have, err)
		}
	}
}

func (w *world) check() {
	holders, macs, held := map[netip.Addr]string{}, map[string]string{}, map[bool]int{}
	for holder, g := range w.s.grants {
		for i, ip := range g.IPs {
			if other, taken := holders[ip]; taken {
				w.t.Fatalf("step %d: %s and %s both have %s", w.step, holder, other, ip)
			}
			if !w.s.pools[i].subnet.Contains(ip) || ip.AsSlice()[len(ip.AsSlice())-1] <= 2 {
				w.t.Fatalf("step %d: %s has %s", w.step, holder, ip)
			}
			holders[ip] = holder
			if !w.s.pools[i].beside[ip] {
				held[ip.Is4()]++
			}
		}
		if other, taken := macs[g.MAC.String()]; taken && g.MAC != nil && other != g.owner {
			w.t.Fatalf("step %d: %s and %s both have MAC %s", w.step, g.owner, other, g.MAC)
		}
		macs[g.MAC.String()] = g.owner
		if len(g.users) == 0 && !g.pinned {
			w.t.Fatalf("step %d: nobody has %s", w.step, holder)
		}
	}
	for _, p := range w.s.pools {
		const usable = 9
		if p.Free()+held[p.subnet.Addr().Is4()] != usable {
			w.t.Fatalf("step %d: %s: %d free and %d held of %d: addresses leak", w.step, p.subnet, p.Free(), held[p.subnet.Addr().Is4()], usable)
		}
	}
	for user, have := range w.users {
		if got, ok := w.s.Of(have.holder); !ok || !sameAddresses(got.IPs, have.IPs) {
			w.t.Fatalf("step %d: %s was given %v, the space says %v", w.step, user, have.IPs, got.IPs)
		}
	}
}

// end takes everything back and wants nothing to be left.
func (w *world) end() {
	for user, have := range w.users {
		w.s.Leave(user, have.holder)
	}
	for holder := range w.claims {
		w.s.Unpin(holder)
	}
	if len(w.s.grants) > 0 || len(w.s.macs) > 0 || len(w.s.byUser) > 0 {
		w.t.Errorf("left behind: %v, %v, %v", w.s.grants, w.s.macs, w.s.byUser)
	}
	for _, p := range w.s.pools {
		if p.Free() != 9 || len(p.beside) > 0 {
			w.t.Errorf("%s: %d free, %v left behind", p.subnet, p.Free(), p.beside)
		}
	}
}
