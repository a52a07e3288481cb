package agent

import (
	"context"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/agent/cni"
	"patchbay/internal/podnetworks"
)

// followNetworks attaches running pods to networks that they ask for later, and detaches them.
func (h *Host) followNetworks(m manager.Manager, plugin *cni.Plugin) error {
	asked := func(o client.Object) string {
		return o.GetAnnotations()[nadv1.NetworkAttachmentAnnot] + "\n" + o.GetAnnotations()[podnetworks.PodAnnotation]
	}
	relevant := predicate.Funcs{
		// An agent that was away may have missed a change.
		CreateFunc: func(event.CreateEvent) bool { return true },
		UpdateFunc: func(e event.UpdateEvent) bool { return asked(e.ObjectOld) != asked(e.ObjectNew) },
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
	return builder.ControllerManagedBy(m).Named("pod-networks").
		For(&corev1.Pod{}, builder.WithPredicates(relevant)).
		WithOptions(controller.Options{SkipNameValidation: new(true), MaxConcurrentReconciles: 4}).
		Complete(reconcile.Func(func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
			select {
			case <-h.Network.Ready():
			case <-ctx.Done():
				return reconcile.Result{}, nil
			}
			return reconcile.Result{}, plugin.Sync(ctx, cni.PodRef{Namespace: r.Namespace, Name: r.Name})
		}))
}
