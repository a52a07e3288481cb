package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"patchbay/internal/podnetworks"
)

// Errors of a Space, in the words that users know from OVN-Kubernetes.
var (
	ErrFamilies = errors.New("requested IPs family types must match network's IP family configuration")
	ErrMACTaken = errors.New("MAC address already in use")
	ErrOverride = errors.New("requested addresses differ from those that were given before")
)

// Space is the addresses of one network that spans all nodes: one of every subnet for each holder, and a MAC. A holder is what
// the addresses belong to (a pod's interface, a machine's, a claim); its users are the pods that have them at present. A holder
// without users loses its addresses unless they are pinned.
type Space struct {
	pools  []*Pool
	grants map[string]*grant
	byUser map[string]map[string]bool // user -> holders
	macs   map[string]*macUse
	newMAC func() net.HardwareAddr
	kept   map[string]bool // MACs of the network itself
}

// Addresses are what a holder has.
type Addresses struct {
	IPs []netip.Addr // one per subnet, in its order
	MAC net.HardwareAddr
}

// Request says who wants addresses, and which.
type Request struct {
	Holder string
	User   string
	Node   string // where the user is; matters to a Sliced only
	// Owner is whose MAC it is. Holders of one owner may have the same, because they are never there at once: the two pods of a
	// machine that moves.
	Owner string
	Addresses
}

type grant struct {
	Addresses
	owner  string
	users  map[string]bool
	pinned bool
}

type macUse struct {
	owner string
	count int
}

// SpaceConfig says what a Space consists of.
type SpaceConfig struct {
	Subnets []netip.Prefix
	Never   []netip.Prefix          // nobody gets them
	Asked   []netip.Prefix          // only who asks for them
	MACs    []net.HardwareAddr      // of the network itself
	NewMAC  func() net.HardwareAddr // any address, for networks without subnets
}

// NewSpace makes an empty space.
func NewSpace(c SpaceConfig) *Space {
	s := &Space{
		grants: map[string]*grant{}, byUser: map[string]map[string]bool{}, macs: map[string]*macUse{},
		newMAC: c.NewMAC, kept: map[string]bool{},
	}
	for _, subnet := range c.Subnets {
		s.pools = append(s.pools, NewPoolWithout(subnet, c.Never, c.Asked))
	}
	for _, mac := range c.MACs {
		s.kept[mac.String()] = true
	}
	return s
}

// Take gives a holder addresses, the wished ones if there is a wish, or says why not. A holder keeps what it has; only when
// nobody uses that at present, another MAC may be wished.
func (s *Space) Take(r Request) (Addresses, error) {
	g, known := s.grants[r.Holder]
	if !known {
		fresh, err := s.allocate(r)
		if err != nil {
			return Addresses{}, err
		}
		g = fresh
		s.grants[r.Holder] = g
	} else if err := s.confirm(g, r); err != nil {
		return Addresses{}, err
	}
	g.users[r.User] = true
	if s.byUser[r.User] == nil {
		s.byUser[r.User] = map[string]bool{}
	}
	s.byUser[r.User][r.Holder] = true
	return g.Addresses, nil
}

// Pin gives a holder certain addresses for as long as it is pinned, whether it has users or not.
func (s *Space) Pin(holder string, ips []netip.Addr) error {
	g, known := s.grants[holder]
	if !known {
		wish, err := s.ordered(ips)
		if err != nil {
			return err
		}
		if err := s.reserve(wish); err != nil {
			return err
		}
		g = &grant{Addresses: Addresses{IPs: wish}, users: map[string]bool{}}
		s.grants[holder] = g
	} else if !sameAddresses(g.IPs, ips) {
		return fmt.Errorf("%s has %v: %w", holder, g.IPs, ErrOverride)
	}
	g.pinned = true
	return nil
}

// KeepMAC gives a pinned holder the MAC that it had, so that nobody else can wish for it while it has no users.
func (s *Space) KeepMAC(holder, owner string, mac net.HardwareAddr) error {
	g, known := s.grants[holder]
	if !known || !g.pinned || g.MAC != nil {
		return nil // what it has at present is newer
	}
	if err := s.checkMAC(mac, owner); err != nil {
		return err
	}
	s.bookMAC(g, mac, owner)
	return nil
}

// Unpin lets the addresses go with the last user. It tells whether they have gone.
func (s *Space) Unpin(holder string) (freed bool) {
	g, known := s.grants[holder]
	if !known {
		return false
	}
	g.pinned = false
	return s.dropUnused(holder)
}

// Leave ends a user's use of one holder's addresses. It tells whether they are free now.
func (s *Space) Leave(user, holder string) (freed bool) {
	g, known := s.grants[holder]
	if !known || !g.users[user] {
		return false
	}
	delete(g.users, user)
	delete(s.byUser[user], holder)
	if len(s.byUser[user]) == 0 {
		delete(s.byUser, user)
	}
	return s.dropUnused(holder)
}

// Of is what a holder has.
func (s *Space) Of(holder string) (Addresses, bool) {
	g, known := s.grants[holder]
	if !known {
		return Addresses{}, false
	}
	return g.Addresses, true
}

// HeldBy are the holders that a user uses.
func (s *Space) HeldBy(user string) []string {
	var holders []string
	for h := range s.byUser[user] {
		holders = append(holders, h)
	}
	slices.Sort(holders)
	return holders
}

// InUse tells whether anybody uses an address.
func (s *Space) InUse() bool { return len(s.byUser) > 0 }

// confirm checks a wish against what the holder has.
func (s *Space) confirm(g *grant, r Request) error {
	if len(r.IPs) > 0 && !sameAddresses(g.IPs, r.IPs) {
		return fmt.Errorf("%v are given, %v are requested: %w", g.IPs, r.IPs, ErrOverride)
	}
	wish := r.MAC
	switch {
	case wish == nil && g.MAC != nil, wish != nil && bytes.Equal(wish, g.MAC):
		return nil
	case len(g.users) > 0:
		return fmt.Errorf("%s is given, %s is requested: %w", g.MAC, wish, ErrOverride)
	}
	mac, err := s.chooseMAC(wish, g.IPs, r.Owner)
	if err != nil {
		return err
	}
	s.releaseMAC(g)
	s.bookMAC(g, mac, r.Owner)
	return nil
}

// allocate makes a grant. An address whose MAC somebody else wished for is passed over.
func (s *Space) allocate(r Request) (*grant, error) {
	wish, err := s.ordered(r.IPs)
	if err != nil {
		return nil, err
	}
	var passedOver []netip.Addr
	defer func() { s.giveBack(passedOver) }()
	for {
		ips, err := s.choose(wish)
		if err != nil {
			return nil, err
		}
		mac, err := s.chooseMAC(r.MAC, ips, r.Owner)
		if err == nil {
			g := &grant{Addresses: Addresses{IPs: ips}, users: map[string]bool{}}
			s.bookMAC(g, mac, r.Owner)
			return g, nil
		}
		passedOver = append(passedOver, ips...)
		if r.MAC != nil || len(wish) > 0 || len(ips) == 0 {
			return nil, err
		}
	}
}

// ordered are wished addresses in the order of the subnets.
func (s *Space) ordered(ips []netip.Addr) ([]netip.Addr, error) {
	if len(ips) == 0 {
		return nil, nil
	}
	if len(ips) != len(s.pools) {
		return nil, ErrFamilies
	}
	out := make([]netip.Addr, len(ips))
	for i, p := range s.pools {
		at := slices.IndexFunc(ips, func(ip netip.Addr) bool { return ip.Is4() == p.subnet.Addr().Is4() })
		if at < 0 {
			return nil, ErrFamilies
		}
		out[i] = ips[at]
	}
	return out, nil
}

// choose takes the wished addresses, or any.
func (s *Space) choose(wish []netip.Addr) ([]netip.Addr, error) {
	if len(wish) > 0 {
		return wish, s.reserve(wish)
	}
	var ips []netip.Addr
	for _, p := range s.pools {
		ip, err := p.Allocate()
		if err != nil {
			s.giveBack(ips)
			return nil, err
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

func (s *Space) reserve(ips []netip.Addr) error {
	for i, ip := range ips {
		if err := s.pools[i].Reserve(ip); err != nil {
			s.giveBack(ips[:i])
			return err
		}
	}
	return nil
}

// giveBack frees addresses of any number of grants.
func (s *Space) giveBack(ips []netip.Addr) {
	for i, ip := range ips {
		s.pools[i%len(s.pools)].Release(ip)
	}
}

// randomMACs is how often a random MAC may turn out to be taken.
const randomMACs = 100

func (s *Space) chooseMAC(wish net.HardwareAddr, ips []netip.Addr, owner string) (net.HardwareAddr, error) {
	switch {
	case wish != nil:
		return wish, s.checkMAC(wish, owner)
	case len(ips) > 0:
		mac := podnetworks.MAC(ips[0])
		return mac, s.checkMAC(mac, owner)
	}
	var err error
	for range randomMACs {
		mac := s.newMAC()
		if err = s.checkMAC(mac, ""); err == nil {
			return mac, nil
		}
	}
	return nil, err
}

func (s *Space) checkMAC(mac net.HardwareAddr, owner string) error {
	use, taken := s.macs[mac.String()]
	if s.kept[mac.String()] || taken && (owner == "" || use.owner != owner) {
		return fmt.Errorf("%s: %w", mac, ErrMACTaken)
	}
	return nil
}

func (s *Space) bookMAC(g *grant, mac net.HardwareAddr, owner string) {
	g.MAC, g.owner = mac, owner
	if s.macs[mac.String()] == nil {
		s.macs[mac.String()] = &macUse{owner: owner}
	}
	s.macs[mac.String()].count++
}

func (s *Space) releaseMAC(g *grant) {
	use := s.macs[g.MAC.String()]
	if g.MAC == nil || use == nil {
		return
	}
	if use.count--; use.count == 0 {
		delete(s.macs, g.MAC.String())
	}
	g.MAC = nil
}

func (s *Space) dropUnused(holder string) bool {
	g := s.grants[holder]
	if g.pinned || len(g.users) > 0 {
		return false
	}
	s.giveBack(g.IPs)
	s.releaseMAC(g)
	delete(s.grants, holder)
	return true
}

func sameAddresses(a, b []netip.Addr) bool {
	if len(a) != len(b) {
		return false
	}
	return !slices.ContainsFunc(b, func(ip netip.Addr) bool { return !slices.Contains(a, ip) })
}
