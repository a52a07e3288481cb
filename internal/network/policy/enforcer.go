package policy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/labels"

	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/topology"
)

// Rows takes the wanted rows of some owners, together; *ovn.Store is one. Owners are "networkpolicy/NAMESPACE/NAME/NETWORK",
// "multinetworkpolicy/NAMESPACE/NAME/NETWORK", "policy-group/NAME", "policy-isolation/NETWORK" and "policy-port/PORT".
type Rows interface {
	SetAll(rows map[string][]nb.Row)
}

// Enforcer keeps the rows of all policies. Tell it of a port before the port's own rows are set: the port is then never without its
// policies.
type Enforcer struct {
	rows Rows
	dns  []netip.Addr

	mu         sync.Mutex
	namespaces map[string]labels.Set
	policies   map[string]map[netpolicy.Key]netpolicy.Policy // by namespace
	networks   map[string]*network
	owned      map[string][]Port   // by owner
	out        map[string][]nb.Row // of the change that is being made
}

// network is a network as policies see it.
type network struct {
	Network
	ports    map[string]map[string]*member // by namespace and name
	groups   map[string]map[string]*group  // by namespace ("" for those of several) and what they select
	policies map[netpolicy.Key]*resolution // in force here
	named    map[NamedPort]int             // ports that give the number the name
}

// member is a port with the groups that it is in.
type member struct {
	Port
	row string
}

// New makes an Enforcer without any policy. dns are the addresses of the cluster's DNS servers.
func New(rows Rows, dns []netip.Addr) *Enforcer {
	return &Enforcer{
		rows: rows, dns: dns, namespaces: map[string]labels.Set{}, policies: map[string]map[netpolicy.Key]netpolicy.Policy{},
		networks: map[string]*network{}, owned: map[string][]Port{},
	}
}

// change makes one change: all rows that follow from it are set together.
func (e *Enforcer) change(make func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out = map[string][]nb.Row{}
	make()
	if len(e.out) > 0 {
		e.rows.SetAll(e.out)
	}
}

func (e *Enforcer) network(name string) *network {
	n := e.networks[name]
	if n == nil {
		n = &network{
			Network: Network{Name: name}, ports: map[string]map[string]*member{}, groups: map[string]map[string]*group{},
			policies: map[netpolicy.Key]*resolution{}, named: map[NamedPort]int{},
		}
		e.networks[name] = n
	}
	return n
}

// SetNamespace says a namespace's labels; nil when it is gone.
func (e *Enforcer) SetNamespace(name string, set labels.Set) {
	e.change(func() {
		if known, ok := e.namespaces[name]; ok && maps.Equal(known, set) {
			return
		}
		e.namespaces[name] = set
		if set == nil {
			delete(e.namespaces, name)
		}
		for _, n := range e.networks {
			if name == dnsNamespace {
				e.rebuild(n, func(*resolution) bool { return true })
			}
			e.refresh(n, name)
		}
	})
}

// SetNetwork says what a network is.
func (e *Enforcer) SetNetwork(is Network) {
	e.change(func() {
		n := e.network(is.Name)
		if reflect.DeepEqual(n.Network, is) {
			return
		}
		n.Network = is
		if len(n.policies) > 0 {
			e.isolate(n)
		}
		e.rebuild(n, func(*resolution) bool { return true })
	})
}

// RemoveNetwork forgets a network. Ports and policies that are still there keep what needs no knowledge of it.
func (e *Enforcer) RemoveNetwork(name string) {
	e.SetNetwork(Network{Name: name})
	e.change(func() {
		if n := e.networks[name]; len(n.ports) == 0 && len(n.policies) == 0 {
			delete(e.networks, name)
		}
	})
}

// SetPorts replaces the ports of an owner.
func (e *Enforcer) SetPorts(owner string, ports []Port) {
	e.change(func() {
		before := e.owned[owner]
		e.owned[owner] = ports
		if len(ports) == 0 {
			delete(e.owned, owner)
		}
		for _, p := range before {
			stays := slices.ContainsFunc(ports, func(now Port) bool {
				return now.Name == p.Name && now.Network == p.Network && now.Namespace == p.Namespace
			})
			if !stays {
				e.removePort(p)
			}
		}
		for _, p := range ports {
			e.putPort(p)
		}
	})
}

func (e *Enforcer) putPort(p Port) {
	n := e.network(p.Network)
	if n.ports[p.Namespace] == nil {
		n.ports[p.Namespace] = map[string]*member{}
	}
	old := n.ports[p.Namespace][p.Name]
	if old != nil && reflect.DeepEqual(old.Port, p) {
		return
	}
	m := &member{Port: p}
	var were []NamedPort
	if old != nil {
		m.row, were = old.row, old.Named
	}
	n.ports[p.Namespace][p.Name] = m
	if p.Primary {
		e.hold(n, p.Namespace)
	}
	e.count(n, were, p.Named)
	e.refreshPort(n, m)
}

func (e *Enforcer) removePort(p Port) {
	n := e.network(p.Network)
	m := n.ports[p.Namespace][p.Name]
	if m == nil {
		return
	}
	delete(n.ports[p.Namespace], p.Name)
	e.out[portOwner(p.Name)] = nil
	if len(n.ports[p.Namespace]) == 0 {
		delete(n.ports, p.Namespace)
		e.release(n, p.Namespace)
	}
	e.count(n, m.Named, nil)
}

// hold brings the plain policies of a namespace to a network where the first of its ports has come.
func (e *Enforcer) hold(n *network, namespace string) {
	for key, p := range e.policies[namespace] {
		if key.Kind == netpolicy.Plain && n.policies[key] == nil {
			e.build(n, p)
		}
	}
}

// release takes the plain policies of a namespace from a network that none of its ports is on.
func (e *Enforcer) release(n *network, namespace string) {
	for key := range n.policies {
		if key.Kind == netpolicy.Plain && key.Namespace == namespace {
			e.drop(n, key)
		}
	}
}

// count keeps the numbers that names stand for, and resolves the policies again that use a name which means something else now.
func (e *Enforcer) count(n *network, were, are []NamedPort) {
	changed := map[name]bool{}
	for _, p := range are {
		if n.named[p]++; n.named[p] == 1 {
			changed[name{p.Protocol, p.Name}] = true
		}
	}
	for _, p := range were {
		if n.named[p]--; n.named[p] == 0 {
			delete(n.named, p)
			changed[name{p.Protocol, p.Name}] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	e.rebuild(n, func(r *resolution) bool {
		for used := range r.names {
			if changed[used] {
				return true
			}
		}
		return false
	})
}

// numbers are what a name stands for on a network.
func (n *network) numbers(p netpolicy.Ports) []NamedPort {
	var out []NamedPort
	for known := range n.named {
		if known.Name == p.Name && known.Protocol == p.Protocol {
			out = append(out, known)
		}
	}
	slices.SortFunc(out, func(a, b NamedPort) int { return int(a.Number) - int(b.Number) })
	return out
}

// SetPolicy brings a policy into force, or what has become of it.
func (e *Enforcer) SetPolicy(p netpolicy.Policy) {
	e.change(func() {
		if known, ok := e.policies[p.Namespace][p.Key]; ok && reflect.DeepEqual(known, p) {
			return
		}
		if e.policies[p.Namespace] == nil {
			e.policies[p.Namespace] = map[netpolicy.Key]netpolicy.Policy{}
		}
		e.policies[p.Namespace][p.Key] = p
		for _, name := range p.Networks {
			e.network(name)
		}
		for _, n := range e.networks {
			switch {
			case n.concerns(p):
				e.build(n, p)
			case n.policies[p.Key] != nil:
				e.drop(n, p.Key)
			}
		}
	})
}

// RemovePolicy ends a policy.
func (e *Enforcer) RemovePolicy(key netpolicy.Key) {
	e.change(func() {
		delete(e.policies[key.Namespace], key)
		if len(e.policies[key.Namespace]) == 0 {
			delete(e.policies, key.Namespace)
		}
		for _, n := range e.networks {
			if n.policies[key] != nil {
				e.drop(n, key)
			}
		}
	})
}

// concerns tells whether a policy is in force on a network.
func (n *network) concerns(p netpolicy.Policy) bool {
	if p.Kind == netpolicy.Multi {
		return slices.Contains(p.Networks, n.Name)
	}
	for _, m := range n.ports[p.Namespace] {
		if m.Primary {
			return true
		}
	}
	return false
}

func policyOwner(n *network, key netpolicy.Key) string {
	return strings.ToLower(key.Kind) + "/" + key.Namespace + "/" + key.Name + "/" + topology.NetworkText(n.Name)
}

func isolationOwner(n *network) string { return "policy-isolation/" + topology.NetworkText(n.Name) }

func portOwner(port string) string { return "policy-port/" + port }
