package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/network/attach"
	"patchbay/internal/network/catalog"
	"patchbay/internal/topology"
)

// Annotations of definitions: what the network is called and its number, which is kept for the network's life.
const (
	nameAnnotation = "k8s.ovn.org/network-name"
	idAnnotation   = "k8s.ovn.org/network-id"
)

func (n *Network) addDefinitions(m manager.Manager) error {
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, d := e.ObjectOld.(*nadv1.NetworkAttachmentDefinition), e.ObjectNew.(*nadv1.NetworkAttachmentDefinition)
		return old.UID != d.UID || old.Spec.Config != d.Spec.Config || netconf.MadeFor(old) != netconf.MadeFor(d) ||
			old.Annotations[nameAnnotation] != d.Annotations[nameAnnotation] || old.Annotations[idAnnotation] != d.Annotations[idAnnotation]
	}}
	return ctrl.NewControllerManagedBy(m).Named("network-definitions").For(&nadv1.NetworkAttachmentDefinition{}, builder.WithPredicates(relevant)).
		WatchesRawSource(n.wakeDefinitions.Source()).
		WithOptions(n.options(4)).Complete(n.afterRecovery(n.reconcileDefinition))
}

func networkOwner(name string) string { return "network/" + name }

func (n *Network) reconcileDefinition(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.NamespacedName == defaultDefinition {
		if err := n.applyDefaultNetwork(ctx); err != nil {
			return reconcile.Result{}, err
		}
	}
	var d nadv1.NetworkAttachmentDefinition
	err := n.client.Get(ctx, req.NamespacedName, &d)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return reconcile.Result{}, err
	case err != nil:
		changed, again := n.tenants.removeDefinition(req.String())
		return reconcile.Result{}, n.networksChanged(ctx, req.NamespacedName, changed, again)
	}
	changed, again, err := n.tenants.putDefinition(&d)
	if err := n.networksChanged(ctx, req.NamespacedName, changed, again); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, n.tellDefinition(ctx, &d, err)
}

// tellDefinition writes a definition's number, or why it cannot be used.
func (n *Network) tellDefinition(ctx context.Context, d *nadv1.NetworkAttachmentDefinition, err error) error {
	key := client.ObjectKeyFromObject(d).String()
	switch {
	case errors.Is(err, netconf.ErrOther):
		return nil
	case err != nil:
		n.warn(d, reasonDefinition, "no pod can be on this network: %v", err)
		return nil
	}
	name, id := n.tenants.numberOf(key)
	if id == 0 || d.Annotations[nameAnnotation] == name && d.Annotations[idAnnotation] == strconv.Itoa(id) {
		return nil
	}
	return client.IgnoreNotFound(n.annotateAll(ctx, d, map[string]string{nameAnnotation: name, idAnnotation: strconv.Itoa(id)}))
}

// networksChanged opens, changes or closes networks after a definition came, changed or went, and wakes whoever waits for it.
func (n *Network) networksChanged(ctx context.Context, definition client.ObjectKey, changed, again []string) error {
	for _, name := range changed {
		if err := n.showNetwork(ctx, name); err != nil {
			return err
		}
	}
	n.wakeDefinitions.Wake(keysOf(again)...)
	n.wakePods.Wake(n.waits.come(attach.OnDefinition(definition.String()), attach.OnNamespace(definition.Namespace))...)
	return nil
}

func keysOf(names []string) []client.ObjectKey {
	var keys []client.ObjectKey
	for _, name := range names {
		namespace, name, _ := strings.Cut(name, "/")
		keys = append(keys, client.ObjectKey{Namespace: namespace, Name: name})
	}
	return keys
}

// showNetwork makes a network's rows what its definitions say. A network that is new gets its addresses back first: those of
// claims, then those of pods.
func (n *Network) showNetwork(ctx context.Context, name string) error {
	defer n.tellNetwork(name)
	n.showing.Lock() // rows are set in the order in which they were decided
	defer n.showing.Unlock()
	if n.tenants.close(name) {
		n.Rows.Delete(networkOwner(name))
		n.Log.Info("network is gone", "network", name)
		return n.closeSlices(ctx, name)
	}
	if n.tenants.extend(name) {
		if err := n.openSlices(ctx, name); err != nil {
			return err
		}
		n.wakePods.Wake(n.waits.come(attach.OnNetwork(name))...)
	}
	if n.tenants.open(name) {
		if err := n.openSlices(ctx, name); err != nil {
			return err
		}
		if err := n.restoreNetwork(ctx, name); err != nil {
			return err
		}
		n.tenants.restored(name)
		n.wakePods.Wake(n.waits.come(attach.OnNetwork(name))...)
	}
	n.setNetworkRows(name)
	return nil
}

// restoreNetwork books the addresses that were given out before a network went and came again.
func (n *Network) restoreNetwork(ctx context.Context, name string) error {
	var claims ipamclaimsv1alpha1.IPAMClaimList
	if err := n.client.List(ctx, &claims, client.MatchingFields{byNetwork: name}); err != nil {
		return fmt.Errorf("list IPAMClaims of network %s: %w", name, err)
	}
	for i := range claims.Items {
		n.restoreClaim(&claims.Items[i])
	}
	var pods corev1.PodList
	if err := n.client.List(ctx, &pods, client.MatchingFields{byNetwork: name}); err != nil {
		return fmt.Errorf("list pods of network %s: %w", name, err)
	}
	for i := range pods.Items {
		n.restoreAttachments(ctx, &pods.Items[i])
	}
	return nil
}

func (n *Network) setNetworkRows(name string) {
	if network, ok := n.tenants.network(name); ok {
		n.Rows.Set(networkOwner(name), topology.NetworkRows(network))
	}
}

// tellNetwork tells the parts that build on networks that one is new, has changed or is gone.
func (n *Network) tellNetwork(name string) {
	for _, tell := range n.networkWatchers {
		tell(name)
	}
}

// freed lets pods go on that waited for an address, and closes networks that nobody is on any more.
func (n *Network) freed(ctx context.Context, networks []string) {
	slices.Sort(networks)
	for _, name := range slices.Compact(networks) {
		n.wakePods.Wake(n.waits.come(attach.OnNetwork(name))...)
		if n.tenants.ownerless(name) {
			if err := n.showNetwork(ctx, name); err != nil {
				n.Log.Error("network cannot be closed", "network", name, "error", err)
			}
		}
	}
}

// recoverDefinitions takes up all definitions: those first that a network's own object made, then those that carry a number.
func (n *Network) recoverDefinitions(ctx context.Context) error {
	var list nadv1.NetworkAttachmentDefinitionList
	if err := n.live.List(ctx, &list); err != nil {
		return fmt.Errorf("list network attachment definitions: %w", err)
	}
	slices.SortStableFunc(list.Items, func(a, b nadv1.NetworkAttachmentDefinition) int {
		return cmp.Or(cmp.Compare(handMade(&a), handMade(&b)), cmp.Compare(unnumbered(&a), unnumbered(&b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name))
	})
	for i := range list.Items {
		d := &list.Items[i]
		if _, _, err := n.tenants.putDefinition(d); err != nil && !errors.Is(err, netconf.ErrOther) {
			n.Log.Warn("network attachment definition cannot be used", "definition", client.ObjectKeyFromObject(d), "error", err)
		}
	}
	for _, name := range n.tenants.names() {
		n.tenants.open(name)
		if err := n.openSlices(ctx, name); err != nil {
			return err
		}
		n.setNetworkRows(name)
		n.tellNetwork(name)
	}
	return nil
}

func unnumbered(d *nadv1.NetworkAttachmentDefinition) int {
	if annotatedID(d) != 0 {
		return 0
	}
	return 1
}

func handMade(d *nadv1.NetworkAttachmentDefinition) int {
	if netconf.MadeFor(d) != "" {
		return 0
	}
	return 1
}

// annotatedID is the number that a definition carries, if it is its network's.
func annotatedID(d *nadv1.NetworkAttachmentDefinition) int {
	id, err := strconv.Atoi(d.Annotations[idAnnotation])
	if err != nil || id < 1 || id > catalog.MaxID {
		return 0
	}
	return id
}

func (t *tenants) putDefinition(d *nadv1.NetworkAttachmentDefinition) (changed, again []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := client.ObjectKeyFromObject(d).String()
	changed, again = t.catalog.Put(key, d.Spec.Config, annotatedID(d), netconf.MadeFor(d))
	definition, _ := t.catalog.Definition(key)
	return changed, again, definition.Err
}

func (t *tenants) removeDefinition(key string) (changed, again []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.catalog.Remove(key)
}

// numberOf is the name and the number of the network that a definition means; 0 when it means the default one.
func (t *tenants) numberOf(key string) (name string, id int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, _ := t.catalog.Definition(key)
	return d.Network.Name, t.catalog.ID(d.Network.Name)
}

func (t *tenants) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.catalog.Names()
}

// open makes a new book of a network's addresses, in which those that were given out have to be restored first. It is false when
// there is one already.
func (t *tenants) open(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	config, known := t.catalog.Config(name)
	if !known || t.spaces[name] != nil && (t.spaces[name].InUse() || t.configs[name].Equal(config)) {
		return false
	}
	t.spaces[name], t.configs[name], t.restoring[name] = catalog.NewSpace(config), config, true
	return true
}

// restored lets networks give out addresses.
func (t *tenants) restored(names ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		delete(t.restoring, name)
	}
}

// close forgets a network that no definition means and nobody is on.
func (t *tenants) close(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.catalog.Drop(name) {
		return false
	}
	delete(t.spaces, name)
	delete(t.configs, name)
	return true
}

// ownerless tells whether no definition means a network any more.
func (t *tenants) ownerless(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.catalog.Ownerless(name)
}

// tenantNamespace tells whether the pods of a namespace are on a primary network of their own.
func (n *Network) tenantNamespace(ctx context.Context, name string) (bool, error) {
	var namespace corev1.Namespace
	if err := n.client.Get(ctx, client.ObjectKey{Name: name}, &namespace); err != nil {
		return false, fmt.Errorf("read namespace %s: %w", name, err)
	}
	_, tenant := namespace.Labels[ovnv1.PrimaryNamespaceLabel]
	return tenant, nil
}
