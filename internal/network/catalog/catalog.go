// Package catalog knows the networks beside the default one: which attachment definitions name them, what they are, and their
// numbers. It is pure bookkeeping in memory; whoever uses it feeds it the definitions, writes the numbers into them, and puts
// them back in the same order after a restart.
package catalog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

// MaxID is the largest number of a network; there are no more networks than that.
const MaxID = 4095

// Errors about a namespace's primary network.
var (
	ErrNoPrimary = errors.New("no primary network")
	ErrIDsTaken  = fmt.Errorf("all %d network numbers are taken; delete a network", MaxID)
	ErrRedefined = errors.New("the network is in use and cannot change; end its pods and machines first, or write the definition as it was")
)

// Catalog is all networks.
type Catalog struct {
	settings    settings.Settings
	inUse       func(network string) bool
	definitions map[string]Definition
	byNamespace map[string]map[string]bool // definitions
	networks    map[string]*network
	ids         map[int]string
	last        int // number that was given out last, so that one rests after its network is gone
}

// Definition is one attachment definition.
type Definition struct {
	Network netconf.Network
	// Err is why nobody can be on the network by this definition. One of another CNI plugin has netconf.ErrOther.
	Err error
}

type network struct {
	netconf.Network
	id          int
	asked       bool            // its definitions are made from a user-defined network
	home        string          // namespace of the first definition
	definitions map[string]bool // that mean it, by "namespace/name"
}

// New makes an empty catalog. It asks inUse before a network changes.
func New(s settings.Settings, inUse func(network string) bool) *Catalog {
	return &Catalog{
		settings: s, inUse: inUse, definitions: map[string]Definition{}, byNamespace: map[string]map[string]bool{},
		networks: map[string]*network{}, ids: map[int]string{},
	}
}

// Put takes up a definition, "namespace/name", with the number that it carries, if any, and the network whose object made it;
// none when it is made by hand. It says which network is new or changed by it, and which definitions should be looked at again.
func (c *Catalog) Put(key, config string, id int, made string) (changed []string, again []string) {
	before, known := c.definitions[key]
	d := c.read(key, config, made)
	if known && before.Err == nil && (d.Err != nil || d.Network.Name != before.Network.Name) {
		changed, again = c.leave(key)
	}
	if d.Err == nil && !d.Network.IsDefault() {
		expelled := c.expel(d.Network.Name, made)
		joined, err := c.join(key, d.Network, id, made)
		if d.Err = err; joined || len(expelled) > 0 {
			changed = append(changed, d.Network.Name)
		}
		again = append(again, expelled...)
	}
	c.definitions[key] = d
	namespace := namespaceOf(key)
	if c.byNamespace[namespace] == nil {
		c.byNamespace[namespace] = map[string]bool{}
	}
	c.byNamespace[namespace][key] = true
	return changed, again
}

func (c *Catalog) read(key, config, made string) Definition {
	n, err := netconf.Parse(key, config)
	if err == nil {
		err = maker(n.Name, made)
	}
	if err == nil && !n.IsDefault() {
		err = n.CheckCluster(c.settings)
	}
	return Definition{Network: n, Err: err}
}

// join makes a definition mean its network, which exists from then on.
func (c *Catalog) join(key string, wanted netconf.Network, id int, made string) (changed bool, err error) {
	n, known := c.networks[wanted.Name]
	if known {
		if err := c.admit(n, key, wanted, made); err != nil {
			return c.disown(n, key), err
		}
	}
	switch {
	case !known:
		if id, err = c.number(wanted.Name, id); err != nil {
			return false, err
		}
		n = &network{Network: wanted, id: id, asked: made != "", home: namespaceOf(key), definitions: map[string]bool{}}
		c.networks[wanted.Name] = n
	case n.Equal(wanted), n.Extends(wanted): // of several definitions one is changed after the other
	case wanted.Extends(n.Network):
		n.Network, changed = wanted, true
	case !n.alone(key):
		return c.disown(n, key), netconf.Mismatch(key, wanted.Name)
	case c.inUse(wanted.Name):
		return c.disown(n, key), fmt.Errorf("%w: %w", netconf.Mismatch(key, wanted.Name), ErrRedefined)
	default:
		n.Network, changed = wanted, true
	}
	changed = changed || !n.definitions[key]
	n.definitions[key] = true
	return changed, nil
}

func (c *Catalog) disown(n *network, key string) (changed bool) {
	changed = n.definitions[key]
	delete(n.definitions, key)
	return changed
}

// number gives a network the number that it had, if nobody else has it, or the next free one.
func (c *Catalog) number(name string, wished int) (int, error) {
	if wished >= 1 && wished <= MaxID && c.ids[wished] == "" {
		c.ids[wished], c.last = name, max(c.last, wished)
		return wished, nil
	}
	for i := range MaxID {
		id := (c.last+i)%MaxID + 1
		if c.ids[id] == "" {
			c.ids[id], c.last = name, id
			return id, nil
		}
	}
	return 0, ErrIDsTaken
}

// Remove forgets a definition. Its network stays until it is dropped.
func (c *Catalog) Remove(key string) (changed []string, again []string) {
	d, known := c.definitions[key]
	if known && d.Err == nil {
		changed, again = c.leave(key)
	}
	delete(c.definitions, key)
	namespace := namespaceOf(key)
	delete(c.byNamespace[namespace], key)
	if len(c.byNamespace[namespace]) == 0 {
		delete(c.byNamespace, namespace)
	}
	return changed, again
}

// leave makes a definition mean its network no longer. Definitions that named it in vain may have their turn.
func (c *Catalog) leave(key string) (changed []string, again []string) {
	name := c.definitions[key].Network.Name
	n := c.networks[name]
	if n == nil || !n.definitions[key] {
		return nil, nil
	}
	delete(n.definitions, key)
	for other, d := range c.definitions {
		if d.Err != nil && d.Network.Name == name {
			again = append(again, other)
		}
	}
	slices.Sort(again)
	return []string{name}, again
}

// Drop forgets a network that no definition means and nobody uses, and says whether it did.
func (c *Catalog) Drop(name string) bool {
	n, known := c.networks[name]
	if !known || len(n.definitions) > 0 || c.inUse(name) {
		return false
	}
	delete(c.networks, name)
	delete(c.ids, n.id)
	return true
}

// Ownerless tells whether no definition means a network that is still there.
func (c *Catalog) Ownerless(name string) bool {
	n, known := c.networks[name]
	return known && len(n.definitions) == 0
}

// Definition is what is known of a definition.
func (c *Catalog) Definition(key string) (Definition, bool) {
	d, known := c.definitions[key]
	return d, known
}

// Definitions are those that mean a network.
func (c *Catalog) Definitions(name string) []string {
	n, known := c.networks[name]
	if !known {
		return nil
	}
	return slices.Sorted(maps.Keys(n.definitions))
}

// Primary is the definition of a namespace's primary network. Without one the error is ErrNoPrimary.
func (c *Catalog) Primary(namespace string) (key string, n netconf.Network, err error) {
	var keys []string
	for key := range c.byNamespace[namespace] {
		if d := c.definitions[key]; d.Err == nil && d.Network.Role == podnetworks.Primary {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	switch len(keys) {
	case 0:
		return "", n, ErrNoPrimary
	case 1:
		return keys[0], c.definitions[keys[0]].Network, nil
	}
	return "", n, fmt.Errorf("namespace %s has several primary networks (%s); delete all but one", namespace, strings.Join(keys, ", "))
}

// Names are all networks.
func (c *Catalog) Names() []string {
	var names []string
	for name := range c.networks {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ID is the number of a network, 0 when there is none of the name.
func (c *Catalog) ID(name string) int {
	if n, known := c.networks[name]; known {
		return n.id
	}
	return 0
}

// Config is a network as its definitions say it.
func (c *Catalog) Config(name string) (netconf.Network, bool) {
	n, known := c.networks[name]
	if !known {
		return netconf.Network{}, false
	}
	return n.Network, true
}

// Network is a network with everything decided.
func (c *Catalog) Network(name string) (topology.Network, bool) {
	n, known := c.networks[name]
	if !known {
		return topology.Network{}, false
	}
	out := topology.Network{
		Name: n.Name, ID: n.id, Topology: n.Topology, Role: n.Role, MTU: c.mtu(n.Network), Physical: n.Physical, VLAN: n.VLAN,
		DNS: c.settings.ClusterDNS, Domain: c.settings.ClusterDomain,
	}
	for _, s := range n.Subnets {
		out.Subnets = append(out.Subnets, s.CIDR)
	}
	if n.Role == podnetworks.Primary {
		out.Gateways, out.Management = n.Kept()
		out.Namespaces = n.namespaces()
	}
	return out, true
}

// mtu of a network that says none is that of the default network, or outside the overlay that of the nodes' network.
func (c *Catalog) mtu(n netconf.Network) int {
	switch {
	case n.MTU != 0:
		return n.MTU
	case n.Topology == netconf.Localnet:
		return c.settings.FabricMTU
	}
	return c.settings.PodMTU
}

func (n *network) namespaces() []string {
	var namespaces []string
	for key := range n.definitions {
		namespaces = append(namespaces, namespaceOf(key))
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}
