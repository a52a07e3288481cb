package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/netconf"
	"patchbay/internal/network/attach"
	"patchbay/internal/network/catalog"
	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// slicedNetworks are the ledgers of layer3 networks, by name.
type slicedNetworks struct {
	mu      sync.Mutex
	ledgers map[string]*ledger
}

func (s *slicedNetworks) set(name string, l *ledger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledgers == nil {
		s.ledgers = map[string]*ledger{}
	}
	s.ledgers[name] = l
}

func (s *slicedNetworks) remove(name string) (l *ledger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l = s.ledgers[name]
	delete(s.ledgers, name)
	return l
}

func (s *slicedNetworks) all() map[string]*ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.ledgers)
}

// ledgerOf is the name of the ConfigMap that says which node has which slices of a network. Networks' names are no object names.
func ledgerOf(network string) string {
	sum := sha256.Sum256([]byte(network))
	return ledgerName + "-" + hex.EncodeToString(sum[:])[:16]
}

// openSlices gives every node its slices of a network that is new. Nodes that come later get theirs when they come.
func (n *Network) openSlices(ctx context.Context, name string) error {
	config, ok := n.tenants.config(name)
	if !ok || config.Topology != netconf.Layer3 {
		return nil
	}
	l := newLedger(n.client, n.live, ledgerOf(name), catalog.Ranges(config))
	n.sliced.set(name, l)
	var nodes corev1.NodeList
	if err := n.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	slices.SortFunc(nodes.Items, func(a, b corev1.Node) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	if err := l.releaseOthers(ctx, nodes.Items); err != nil {
		return err
	}
	var keys []client.ObjectKey
	for i := range nodes.Items {
		annotated, _ := podnetworks.ParseNode(nodes.Items[i].Annotations) // what cannot be read counts as nothing, and is written anew
		n.openSlice(ctx, &nodes.Items[i], name, l, annotated[name])
		keys = append(keys, client.ObjectKeyFromObject(&nodes.Items[i]))
	}
	n.wakeNodes.Wake(keys...) // they write what they have
	return nil
}

// openSlice gives a node its slices of one network. It is no error of the node if there are none left: its other networks go on.
func (n *Network) openSlice(ctx context.Context, node *corev1.Node, name string, l *ledger, wished []netip.Prefix) (fresh bool) {
	subnets, err := l.assign(ctx, node.Name, wished)
	if err != nil {
		n.warn(node, reasonNodeFailed, "network %s: give subnets to node %s: %v", name, node.Name, err)
		return false
	}
	if fresh = n.tenants.openSlice(name, node.Name, subnets); fresh {
		n.Log.Info("node has subnets of a network", "node", node.Name, "network", name, "subnets", subnets)
	}
	return fresh
}

// ensureSlices gives a node its slices of all networks.
func (n *Network) ensureSlices(ctx context.Context, node *corev1.Node, annotated map[string][]netip.Prefix) {
	for name, l := range n.sliced.all() {
		if n.openSlice(ctx, node, name, l, annotated[name]) {
			n.slicesChanged(name)
		}
	}
}

// forgetSlices takes back what a node had of all networks. Nodes that have found none left look again.
func (n *Network) forgetSlices(ctx context.Context, node string) error {
	var errs []error
	for name, l := range n.sliced.all() {
		if n.tenants.closeSlice(name, node) {
			n.slicesChanged(name)
		}
		if err := l.release(ctx, node); err != nil {
			errs = append(errs, fmt.Errorf("take back the subnets of network %s from node %s: %w", name, node, err))
		}
	}
	var keys []client.ObjectKey
	for _, name := range n.book.nodeNames() {
		keys = append(keys, client.ObjectKey{Name: name})
	}
	n.wakeNodes.Wake(keys...)
	return errors.Join(errs...)
}

// slicesChanged makes the rows that follow, and lets pods go on that waited for the slices, and services that differ by node.
func (n *Network) slicesChanged(name string) {
	n.showing.Lock()
	n.setNetworkRows(name)
	n.showing.Unlock()
	n.tellNetwork(name)
	n.wakePods.Wake(n.waits.come(attach.OnNetwork(name))...)
	n.wakeSvcs.Wake(n.book.localServices()...)
}

// closeSlices forgets who had what of a network that is gone.
func (n *Network) closeSlices(ctx context.Context, name string) error {
	if n.sliced.remove(name) == nil {
		return nil
	}
	gone := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: ledgerOf(name)}}
	if err := n.client.Delete(ctx, gone); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the ledger of network %s: %w", name, err)
	}
	var nodes corev1.NodeList
	if err := n.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	var keys []client.ObjectKey
	for i := range nodes.Items {
		keys = append(keys, client.ObjectKeyFromObject(&nodes.Items[i]))
	}
	n.wakeNodes.Wake(keys...)
	return nil
}

func (t *tenants) config(name string) (netconf.Network, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.catalog.Config(name)
}

// extend tells whether a network that is in use has got further ranges. What nodes have stays theirs.
func (t *tenants) extend(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	config, known := t.catalog.Config(name)
	if !known || t.spaces[name] == nil || !config.Extends(t.configs[name]) {
		return false
	}
	t.configs[name] = config
	return true
}

func (t *tenants) openSlice(name, node string, subnets []netip.Prefix) (fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	space, ok := t.spaces[name].(*ipam.Sliced)
	return ok && space.Open(node, subnets)
}

func (t *tenants) closeSlice(name, node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	space, ok := t.spaces[name].(*ipam.Sliced)
	return ok && space.Close(node)
}

// slicesOf are what a node has of all layer3 networks, by their names.
func (t *tenants) slicesOf(node string) map[string][]netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string][]netip.Prefix{}
	for name, space := range t.spaces {
		if sliced, ok := space.(*ipam.Sliced); ok && sliced.Slices()[node] != nil {
			out[name] = sliced.Slices()[node]
		}
	}
	return out
}

// networkLocked is a network with everything decided.
func (t *tenants) networkLocked(name string) (topology.Network, bool) {
	network, ok := t.catalog.Network(name)
	if sliced, is := t.spaces[name].(*ipam.Sliced); ok && is {
		for _, node := range slices.Sorted(maps.Keys(sliced.Slices())) {
			network.Slices = append(network.Slices, topology.NodeSlice{Node: node, Subnets: sliced.Slices()[node]})
		}
	}
	return network, ok
}

// route completes the entry of a pod on a layer3 network: the way to the other slices, and for a primary network to everywhere.
func (n *Network) route(e *podnetworks.Network, network topology.Network, node string) {
	slice, ok := network.Slice(node)
	if !ok {
		return
	}
	gateways := slice.Gateways()
	if network.HasRouter() {
		e.Gateways, e.Routes = gateways, n.serviceRoutes(gateways)
		e.LinkLocalGateway = linkLocal(podnetworks.MAC(gateways[0]), gateways)
	}
	for _, gateway := range gateways {
		for _, subnet := range network.Subnets {
			if subnet.Addr().Is4() == gateway.Is4() {
				e.Routes = append(e.Routes, podnetworks.Route{Dest: subnet, NextHop: gateway})
			}
		}
	}
}
