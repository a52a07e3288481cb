package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/network/placement"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// registry is what gateways and services ask about the networks beside the default one.
type registry interface {
	names() []string
	network(name string) (topology.Network, bool)
}

// gateways is where tenants' networks leave the overlay, and which namespaces they have.
type gateways struct {
	mu    sync.Mutex
	nodes placement.Nodes
	fit   []string
	open  map[string]gateway // by network
}

type gateway struct {
	network topology.Network
	chassis []string
}

func newGateways() *gateways { return &gateways{open: map[string]gateway{}} }

func gatewayOwner(network string) string { return "gateway/" + network }

// addGateways follows the nodes' lives. The networks themselves are told by their own controller.
func (n *Network) addGateways(m manager.Manager) error {
	n.networkWatchers = append(n.networkWatchers, func(name string) { n.wakeGateways.Wake(client.ObjectKey{Name: name}) })
	err := ctrl.NewControllerManagedBy(m).Named("network-gateway-nodes").For(&corev1.Node{}, builder.WithPredicates(readiness)).
		Watches(&coordinationv1.Lease{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(nodeLeases)).
		WithOptions(n.options(1)).Complete(n.afterRecovery(n.reconcileLife))
	if err != nil {
		return err
	}
	c, err := controller.New("network-gateways", m, n.controllerOptions(n.reconcileGateway))
	if err != nil {
		return err
	}
	return c.Watch(n.wakeGateways.Source())
}

func (n *Network) controllerOptions(r func(context.Context, reconcile.Request) (reconcile.Result, error)) controller.Options {
	o := n.options(4)
	o.Reconciler = n.afterRecovery(r)
	return o
}

// readiness leaves out what else the kubelet reports.
var readiness = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || ready(e.ObjectOld.(*corev1.Node)) != ready(e.ObjectNew.(*corev1.Node))
}}

// nodeLeases are the signs of life of kubelets; each has its node's name.
var nodeLeases = predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetNamespace() == corev1.NamespaceNodeLease })

func ready(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (n *Network) reconcileLife(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if err := n.hear(ctx, req.Name); err != nil {
		return reconcile.Result{}, err
	}
	changed, again := n.gateways.refit(time.Now())
	if changed {
		n.Log.Info("nodes that may have gateways", "nodes", n.gateways.fitNodes())
		var keys []client.ObjectKey
		for _, name := range n.registry.names() {
			keys = append(keys, client.ObjectKey{Name: name})
		}
		n.wakeGateways.Wake(keys...)
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// hear learns whether a node lives.
func (n *Network) hear(ctx context.Context, name string) error {
	var node corev1.Node
	if err := n.client.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		n.gateways.forget(name)
		return client.IgnoreNotFound(err)
	}
	sign := ""
	var lease coordinationv1.Lease
	err := n.client.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: name}, &lease)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return fmt.Errorf("read the lease of node %s: %w", name, err)
	case err == nil && lease.Spec.RenewTime != nil:
		sign = lease.Spec.RenewTime.String()
	}
	n.gateways.hear(name, ready(&node), sign, time.Now())
	return nil
}

func (g *gateways) hear(name string, ready bool, sign string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nodes.Hear(name, ready, sign, now)
}

func (g *gateways) forget(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nodes.Forget(name)
}

// refit says whether other nodes may have gateways than before, and when to ask again.
func (g *gateways) refit(now time.Time) (changed bool, again time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fit, again := g.nodes.Fit(now)
	changed = !slices.Equal(fit, g.fit)
	g.fit = fit
	return changed, again
}

func (g *gateways) fitNodes() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.fit)
}

func (n *Network) reconcileGateway(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	return reconcile.Result{}, n.wakeNamespaces(ctx, n.ensureGateway(req.Name))
}

// ensureGateway places a network's gateway, or takes it away with its network. It returns the namespaces whose services are
// to be looked at again.
func (n *Network) ensureGateway(name string) (namespaces []string) {
	network, exists := n.registry.network(name)
	if !exists || !network.HasRouter() {
		n.Rows.Delete(gatewayOwner(name))
		return n.gateways.close(name)
	}
	chassis, namespaces := n.gateways.place(network)
	n.Rows.Set(gatewayOwner(name), topology.GatewayRows(topology.Gateway{
		Network: name, ID: network.ID, Subnets: network.Subnets, Switches: network.Switches(), Chassis: chassis,
	}))
	return namespaces
}

// place decides where a network's gateway is. The namespaces it returns are those that came or went, or all of them when their
// services have to find another node.
func (g *gateways) place(network topology.Network) (chassis, namespaces []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, known := g.open[network.Name]
	now := gateway{network: network, chassis: placement.Chassis(network.Name, g.fit)}
	g.open[network.Name] = now
	if !known || before.node() != now.node() {
		return now.chassis, union(before.network.Namespaces, network.Namespaces)
	}
	return now.chassis, difference(before.network.Namespaces, network.Namespaces)
}

// node is where the gateway is wanted; empty when no node can have it.
func (g gateway) node() string {
	if len(g.chassis) == 0 {
		return ""
	}
	return g.chassis[0]
}

func (g *gateways) close(name string) (namespaces []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	namespaces = g.open[name].network.Namespaces
	delete(g.open, name)
	return namespaces
}

// of is the gateway of a namespace's primary network.
func (g *gateways) of(namespace string) (gateway, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, candidate := range g.open {
		if slices.Contains(candidate.network.Namespaces, namespace) {
			return candidate, true
		}
	}
	return gateway{}, false
}

func union(a, b []string) []string {
	all := map[string]bool{}
	for _, s := range slices.Concat(a, b) {
		all[s] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// difference is what only one of the lists has.
func difference(a, b []string) []string {
	var out []string
	for _, s := range union(a, b) {
		if slices.Contains(a, s) != slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// wakeNamespaces has all services of some namespaces looked at again.
func (n *Network) wakeNamespaces(ctx context.Context, namespaces []string) error {
	for _, namespace := range namespaces {
		var services corev1.ServiceList
		if err := n.client.List(ctx, &services, client.InNamespace(namespace)); err != nil {
			return fmt.Errorf("list services of namespace %s: %w", namespace, err)
		}
		for i := range services.Items {
			n.wakeSvcs.Wake(client.ObjectKeyFromObject(&services.Items[i]))
		}
	}
	return nil
}

// recoverGateways places all gateways before anything is removed from the database.
func (n *Network) recoverGateways(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := n.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		if err := n.hear(ctx, nodes.Items[i].Name); err != nil {
			return err
		}
	}
	n.gateways.refit(time.Now())
	for _, name := range n.registry.names() {
		n.ensureGateway(name)
	}
	return nil
}

// entry are the management addresses of the node that has a gateway.
func (b *book) entry(node string) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []netip.Addr
	for _, subnet := range b.nodes[node] {
		out = append(out, podnetworks.Management(subnet))
	}
	return out
}
