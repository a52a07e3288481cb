package network

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

func newNode() client.Object { return &corev1.Node{} }

func (n *Network) addNodes(m manager.Manager) error {
	// Heartbeats do not concern us.
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() ||
			e.ObjectOld.GetAnnotations()[podnetworks.NodeAnnotation] != e.ObjectNew.GetAnnotations()[podnetworks.NodeAnnotation]
	}}
	return ctrl.NewControllerManagedBy(m).Named("network-nodes").For(&corev1.Node{}, builder.WithPredicates(relevant)).
		WatchesRawSource(n.wakeNodes.Source()).
		WithOptions(n.options(4)).Complete(n.afterRecovery(n.reconcileNode))
}

func nodeOwner(name string) string { return "node/" + name }

func (n *Network) reconcileNode(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var node corev1.Node
	err := n.client.Get(ctx, req.NamespacedName, &node)
	switch {
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, n.forgetNode(ctx, req.Name)
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, n.ensureNode(ctx, &node)
}

// ensureNode gives a node its slices, its rows, and lets its pods go on.
func (n *Network) ensureNode(ctx context.Context, node *corev1.Node) error {
	annotated, err := podnetworks.ParseNode(node.Annotations)
	if err != nil {
		n.Log.Warn("node's annotation is not readable and is written anew", "node", node.Name, "error", err)
	}
	subnets, err := n.ledger.assign(ctx, node.Name, annotated[podnetworks.Default])
	if err != nil {
		err = fmt.Errorf("give subnets to node %s: %w", node.Name, err)
		n.warn(node, reasonNodeFailed, "%v", err)
		return err
	}
	n.Rows.Set(nodeOwner(node.Name), topology.NodeRows(topology.Node{Name: node.Name, Subnets: subnets}))
	if fresh, woken := n.book.openNode(node.Name, subnets); fresh {
		n.wakePods.Wake(woken...)
		n.wakeSvcs.Wake(n.book.localServices()...)
	}
	n.ensureSlices(ctx, node, annotated)
	return n.annotateNode(ctx, node, annotated, subnets)
}

// annotateNode writes which slices a node has. While networks are still being restored, what the annotation says of them stays: it
// may be all that is known.
func (n *Network) annotateNode(ctx context.Context, node *corev1.Node, annotated map[string][]netip.Prefix, subnets []netip.Prefix) error {
	networks := n.tenants.slicesOf(node.Name)
	networks[podnetworks.Default] = subnets
	if !n.isRecovered() {
		for name, have := range annotated {
			if networks[name] == nil {
				networks[name] = have
			}
		}
	}
	text, err := podnetworks.FormatNode(networks)
	if err != nil || maps.EqualFunc(networks, annotated, slices.Equal) {
		return err
	}
	n.Log.Info("node has subnets", "node", node.Name, "subnets", networks)
	return n.annotate(ctx, node, podnetworks.NodeAnnotation, text)
}

func (n *Network) isRecovered() bool {
	select {
	case <-n.recovered:
		return true
	default:
		return false
	}
}

// annotate writes one annotation, to the very object that was read and not to one that has taken its name.
func (n *Network) annotate(ctx context.Context, object client.Object, key, value string) error {
	return n.annotateAll(ctx, object, map[string]string{key: value})
}

func (n *Network) annotateAll(ctx context.Context, object client.Object, annotations map[string]string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": object.GetUID(), "annotations": annotations}})
	if err != nil {
		return err
	}
	target := object.DeepCopyObject().(client.Object)
	if err := n.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotate %s: %w", client.ObjectKeyFromObject(object), err)
	}
	return nil
}

func (n *Network) forgetNode(ctx context.Context, name string) error {
	n.Rows.Delete(nodeOwner(name))
	n.book.closeNode(name)
	n.wakeSvcs.Wake(n.book.localServices()...)
	if err := n.Chassis.RemoveChassis(ctx, name); err != nil {
		return err
	}
	if err := n.forgetSlices(ctx, name); err != nil {
		return err
	}
	if err := n.ledger.release(ctx, name); err != nil {
		return fmt.Errorf("take back the subnets of node %s: %w", name, err)
	}
	n.Log.Info("node is gone", "node", name)
	return nil
}
