package catalog

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// ErrForeign says that a definition names a network that belongs to somebody else.
var ErrForeign = errors.New("the network belongs to somebody else")

// maker checks a network's name against the network whose object made the definition, if one did. The names of the cluster's
// networks mean nothing in a definition that is made by hand: who could write them would be in everybody's network.
func maker(name, made string) error {
	namespace, object, composed := netconf.AskedBy(name)
	switch {
	case made != "" && made != name:
		return fmt.Errorf("network name %q: %w; this definition is made for network %q", name, ErrForeign, made)
	case made == "" && composed && namespace == "":
		return fmt.Errorf("network name %q: %w: it is kept for ClusterUserDefinedNetwork %s; choose a name without an underscore", name, ErrForeign, object)
	}
	return nil
}

// admit checks that a definition may mean a network that others mean already. Those that are made from one user-defined network
// are among themselves. By hand a secondary network may be shared by its name, a primary one only within its namespace: it is
// closed, and nobody can be asked whether another namespace may come in.
func (c *Catalog) admit(n *network, key string, wanted netconf.Network, made string) error {
	if n.alone(key) && !c.inUse(wanted.Name) {
		n.asked, n.home = made != "", namespaceOf(key)
		return nil
	}
	switch {
	case n.asked && made == "":
		return fmt.Errorf("network name %q: %w: only definitions that its user-defined network makes are on it; choose a name without an underscore", wanted.Name, ErrForeign)
	case !n.asked && made != "":
		return fmt.Errorf("network name %q: %w: definitions made by hand have it (%s) and pods are on it; end these pods and delete those definitions",
			wanted.Name, ErrForeign, strings.Join(n.others(key), ", "))
	case made == "" && n.Role == podnetworks.Primary && n.home != namespaceOf(key):
		return fmt.Errorf("network name %q: %w: it is the primary network of another namespace; choose another name, "+
			"or have a ClusterUserDefinedNetwork made that selects both namespaces", wanted.Name, ErrForeign)
	}
	return nil
}

// expel takes a network's name from definitions made by hand when the user-defined network comes that it belongs to, unless
// pods are on it.
func (c *Catalog) expel(name, made string) (expelled []string) {
	n, known := c.networks[name]
	if !known || made == "" || n.asked || c.inUse(name) {
		return nil
	}
	expelled = n.others("")
	clear(n.definitions)
	for _, key := range expelled {
		d := c.definitions[key]
		d.Err = fmt.Errorf("network name %q: %w", name, ErrForeign)
		c.definitions[key] = d
	}
	return expelled
}

// alone tells whether no other definition means a network.
func (n *network) alone(key string) bool {
	return len(n.definitions) == 0 || len(n.definitions) == 1 && n.definitions[key]
}

// others are the definitions that mean a network, without one.
func (n *network) others(key string) []string {
	var keys []string
	for other := range n.definitions {
		if other != key {
			keys = append(keys, other)
		}
	}
	slices.Sort(keys)
	return keys
}

func namespaceOf(key string) string {
	namespace, _, _ := strings.Cut(key, "/")
	return namespace
}
