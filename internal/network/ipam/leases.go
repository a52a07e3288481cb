package ipam

import (
	"fmt"
	"net/netip"
	"slices"
)

// Leases gives each owner one address of every subnet of a scope: to a pod one per family of its node's slices. An owner is
// a name with an identity; the same name with another identity is somebody else.
type Leases struct {
	scopes map[string][]*Pool
	leases map[string]Lease
}

// Lease is what one owner has.
type Lease struct {
	ID    string
	Scope string
	IPs   []netip.Addr
}

// NewLeases makes an empty book.
func NewLeases() *Leases {
	return &Leases{scopes: map[string][]*Pool{}, leases: map[string]Lease{}}
}

// Open adds a scope. The kept addresses of each subnet are never handed out.
func (l *Leases) Open(scope string, subnets []netip.Prefix, kept func(netip.Prefix) []netip.Addr) {
	if _, open := l.scopes[scope]; open {
		return
	}
	for _, s := range subnets {
		l.scopes[scope] = append(l.scopes[scope], NewPool(s, kept(s)...))
	}
}

// Close forgets a scope with all its leases.
func (l *Leases) Close(scope string) {
	delete(l.scopes, scope)
	for owner, lease := range l.leases {
		if lease.Scope == scope {
			delete(l.leases, owner)
		}
	}
}

// IsOpen tells whether a scope can hand out addresses.
func (l *Leases) IsOpen(scope string) bool { return l.scopes[scope] != nil }

// Of is what an owner has.
func (l *Leases) Of(owner string) (Lease, bool) {
	lease, ok := l.leases[owner]
	return lease, ok
}

// Take gives an owner its addresses: the ones it has, or new ones. What the same name had under another identity or in
// another scope is given back.
func (l *Leases) Take(owner, id, scope string) (Lease, error) {
	if have, ok := l.leases[owner]; ok && have.ID == id && have.Scope == scope {
		return have, nil
	}
	l.Release(owner)
	lease := Lease{ID: id, Scope: scope}
	for _, pool := range l.scopes[scope] {
		ip, err := pool.Allocate()
		if err != nil {
			l.giveBack(lease)
			return Lease{}, fmt.Errorf("%s: %w", scope, err)
		}
		lease.IPs = append(lease.IPs, ip)
	}
	l.leases[owner] = lease
	return lease, nil
}

// Restore books certain addresses, one per subnet of the scope.
func (l *Leases) Restore(owner string, lease Lease) error {
	if have, ok := l.leases[owner]; ok && have.ID == lease.ID && have.Scope == lease.Scope && slices.Equal(have.IPs, lease.IPs) {
		return nil
	}
	pools := l.scopes[lease.Scope]
	if len(pools) != len(lease.IPs) {
		return fmt.Errorf("%s has %d addresses, %s has %d subnets", owner, len(lease.IPs), lease.Scope, len(pools))
	}
	for i, ip := range lease.IPs {
		if err := pools[i].Reserve(ip); err != nil {
			l.giveBack(Lease{Scope: lease.Scope, IPs: lease.IPs[:i]})
			return fmt.Errorf("%s: %w", owner, err)
		}
	}
	l.Release(owner)
	l.leases[owner] = lease
	return nil
}

// Release gives back what an owner has and says what that was.
func (l *Leases) Release(owner string) (Lease, bool) {
	lease, ok := l.leases[owner]
	if ok {
		l.giveBack(lease)
		delete(l.leases, owner)
	}
	return lease, ok
}

func (l *Leases) giveBack(lease Lease) {
	for i, ip := range lease.IPs {
		l.scopes[lease.Scope][i].Release(ip)
	}
}

// Len is how many owners have a lease.
func (l *Leases) Len() int { return len(l.leases) }
