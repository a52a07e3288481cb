package vm

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"patchbay/internal/vm/lifecycle"
)

// nodes steps nodes.
type nodes struct {
	cached   client.Client
	executor executor
	config   Config
}

func (n *nodes) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("virtualmachinenode").
		For(&corev1.Node{}, builder.WithPredicates(heartbeats)).
		WithOptions(n.config.options()).
		Complete(n)
}

// heartbeats leaves out what the kubelet writes.
var heartbeats = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return serviceChanges.Update(e) ||
		e.ObjectOld.GetAnnotations()[virtv1.VirtHandlerHeartbeat] != e.ObjectNew.GetAnnotations()[virtv1.VirtHandlerHeartbeat]
}}

// Reconcile steps one node.
func (n *nodes) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	node := &corev1.Node{}
	if found, err := get(ctx, n.cached, req.NamespacedName, node); err != nil || !found {
		return ctrl.Result{}, err
	}
	return n.executor.decide(ctx, lifecycle.StepNode(n.config.Now(), node), func(lifecycle.Action, error) lifecycle.Decision {
		return lifecycle.Decision{}
	})
}
