package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// ErrNoSlice says that a node has no slice of the network.
var ErrNoSlice = errors.New("the node has no subnets of the network yet")

// Sliced is the addresses of a network of which each node has slices: a Space for every node. Nothing of it can be pinned, because an
// address belongs to its node.
type Sliced struct {
	config  func(slices []netip.Prefix) SpaceConfig
	subnets map[string][]netip.Prefix
	spaces  map[string]*Space
	at      map[string]string // nodes of holders
}

// NewSliced makes a space without slices; config says what a node's slices consist of.
func NewSliced(config func(slices []netip.Prefix) SpaceConfig) *Sliced {
	return &Sliced{config: config, subnets: map[string][]netip.Prefix{}, spaces: map[string]*Space{}, at: map[string]string{}}
}

// Open makes a node's slices usable, and tells whether they are new. Slices that somebody uses do not change.
func (s *Sliced) Open(node string, subnets []netip.Prefix) (fresh bool) {
	if space := s.spaces[node]; space != nil && (slices.Equal(s.subnets[node], subnets) || space.InUse()) {
		return false
	}
	s.subnets[node], s.spaces[node] = slices.Clone(subnets), NewSpace(s.config(subnets))
	return true
}

// Close takes a node's slices away, with everything that anybody has of them. It tells whether there were any.
func (s *Sliced) Close(node string) bool {
	_, had := s.spaces[node]
	delete(s.spaces, node)
	delete(s.subnets, node)
	maps.DeleteFunc(s.at, func(_, at string) bool { return at == node })
	return had
}

// Slices are all nodes with their slices.
func (s *Sliced) Slices() map[string][]netip.Prefix { return s.subnets }

// Take is Space.Take on the request's node.
func (s *Sliced) Take(r Request) (Addresses, error) {
	space := s.spaces[r.Node]
	if space == nil {
		return Addresses{}, fmt.Errorf("node %s: %w", r.Node, ErrNoSlice)
	}
	a, err := space.Take(r)
	if err == nil {
		s.at[r.Holder] = r.Node
	}
	return a, err
}

// Leave is Space.Leave.
func (s *Sliced) Leave(user, holder string) (freed bool) {
	space := s.spaces[s.at[holder]]
	if space == nil {
		return false
	}
	if freed = space.Leave(user, holder); freed {
		delete(s.at, holder)
	}
	return freed
}

// Pin refuses.
func (s *Sliced) Pin(holder string, _ []netip.Addr) error {
	return fmt.Errorf("%s cannot keep addresses of a network whose addresses belong to nodes", holder)
}

// KeepMAC has nothing to do: nothing is pinned.
func (s *Sliced) KeepMAC(string, string, net.HardwareAddr) error { return nil }

// Unpin has nothing to do.
func (s *Sliced) Unpin(string) (freed bool) { return false }

// InUse tells whether anybody uses an address.
func (s *Sliced) InUse() bool {
	for _, space := range s.spaces {
		if space.InUse() {
			return true
		}
	}
	return false
}
