package network

import (
	"errors"
	"net/netip"
	"slices"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
)

// errNoSlice says that a pod's node has no slice yet.
var errNoSlice = errors.New("the node has no subnets yet")

// book is what the controllers know together: the nodes' slices, the pods' addresses, and which pods wait for either.
type book struct {
	mu      sync.Mutex
	leases  *ipam.Leases
	nodes   map[string][]netip.Prefix
	waiting map[string]map[client.ObjectKey]bool // by node
	local   map[client.ObjectKey]bool            // services with rows per node
}

func newBook() *book {
	return &book{
		leases: ipam.NewLeases(), nodes: map[string][]netip.Prefix{},
		waiting: map[string]map[client.ObjectKey]bool{}, local: map[client.ObjectKey]bool{},
	}
}

// infrastructure are the addresses of a slice that no pod gets.
func infrastructure(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{podnetworks.Gateway(subnet), podnetworks.Management(subnet)}
}

// openNode makes a node's slices usable. It says whether they are new and which pods waited for them.
func (b *book) openNode(node string, subnets []netip.Prefix) (fresh bool, woken []client.ObjectKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.nodes[node], subnets) {
		return false, nil
	}
	b.leases.Close(node)
	b.leases.Open(node, subnets, infrastructure)
	b.nodes[node] = subnets
	return true, b.wakeLocked(node)
}

func (b *book) closeNode(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases.Close(node)
	delete(b.nodes, node)
}

func (b *book) nodeNames() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := make([]string, 0, len(b.nodes))
	for name := range b.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (b *book) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases.Len()
}

func (b *book) wakeLocked(node string) []client.ObjectKey {
	var keys []client.ObjectKey
	for k := range b.waiting[node] {
		keys = append(keys, k)
	}
	delete(b.waiting, node)
	return keys
}

// restore gives a pod back the addresses that it was given before.
func (b *book) restore(key client.ObjectKey, uid, node string, ips []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases.Restore(key.String(), ipam.Lease{ID: uid, Scope: node, IPs: ips})
}

// take gives a pod its addresses, with the slices' lengths. A pod that cannot have any is woken when it may try again.
func (b *book) take(key client.ObjectKey, uid, node string) ([]netip.Prefix, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lease, err := ipam.Lease{}, errNoSlice
	if b.leases.IsOpen(node) {
		lease, err = b.leases.Take(key.String(), uid, node)
	}
	if err != nil {
		if b.waiting[node] == nil {
			b.waiting[node] = map[client.ObjectKey]bool{}
		}
		b.waiting[node][key] = true
		return nil, err
	}
	return b.withLengths(lease), nil
}

func (b *book) withLengths(lease ipam.Lease) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(lease.IPs))
	for i, ip := range lease.IPs {
		prefixes[i] = netip.PrefixFrom(ip, b.nodes[lease.Scope][i].Bits())
	}
	return prefixes
}

// has tells whether a pod of this identity has addresses.
func (b *book) has(key client.ObjectKey, uid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	lease, ok := b.leases.Of(key.String())
	return ok && lease.ID == uid
}

// release gives a pod's addresses back and says which pods waited for some.
func (b *book) release(key client.ObjectKey) []client.ObjectKey {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, waiting := range b.waiting {
		delete(waiting, key)
	}
	if lease, ok := b.leases.Release(key.String()); ok {
		return b.wakeLocked(lease.Scope)
	}
	return nil
}

// setLocal remembers whether a service has rows per node.
func (b *book) setLocal(key client.ObjectKey, local bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if local {
		b.local[key] = true
	} else {
		delete(b.local, key)
	}
}

func (b *book) localServices() []client.ObjectKey {
	b.mu.Lock()
	defer b.mu.Unlock()
	var keys []client.ObjectKey
	for k := range b.local {
		keys = append(keys, k)
	}
	return keys
}
