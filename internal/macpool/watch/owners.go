package watch

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/machinepod"
	"patchbay/internal/macpool/assign"
)

// addOwners watches the machines and pods that hold addresses.
func (w *Watch) addOwners(m manager.Manager) error {
	// The last that is known of a deleted machine says which of its promises are settled.
	remember := builder.WithPredicates(predicate.Funcs{DeleteFunc: func(e event.DeleteEvent) bool {
		stamp, _ := assign.Stored(e.Object.(*virtv1.VirtualMachine))
		w.deleted.Store(client.ObjectKeyFromObject(e.Object), stamp)
		return true
	}})
	err := ctrl.NewControllerManagedBy(m).Named("mac-machines").For(&virtv1.VirtualMachine{}, remember).Complete(reconcile.Func(w.machine))
	if err != nil {
		return err
	}
	named := builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
		pod := o.(*corev1.Pod)
		return !machinepod.Is(pod) && len(assign.PodAddresses(pod)) > 0
	}))
	return ctrl.NewControllerManagedBy(m).Named("mac-pods").For(&corev1.Pod{}, named).Complete(reconcile.Func(w.pod))
}

// machine confirms or takes back what the requests for a machine were promised.
func (w *Watch) machine(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	owner, vm := assign.VMOwner(req.Namespace, req.Name), &virtv1.VirtualMachine{}
	if err := w.client.Get(ctx, req.NamespacedName, vm); err != nil {
		if client.IgnoreNotFound(err) == nil {
			last, _ := w.deleted.LoadAndDelete(req.NamespacedName)
			stamp, _ := last.(time.Time)
			w.Pool.Align(owner, stamp, nil)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	stamp, nics := assign.Stored(vm)
	w.Pool.Align(owner, stamp, nics)
	return reconcile.Result{}, w.complete(ctx, vm)
}

// complete lets a machine that was admitted during a rebuild be admitted again, which gives its NICs their addresses.
func (w *Watch) complete(ctx context.Context, vm *virtv1.VirtualMachine) error {
	if vm.Annotations[assign.WaitingAnnotation] == "" {
		return nil
	}
	if err := w.wait(ctx); err != nil {
		return err
	}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, assign.WaitingAnnotation))
	return client.IgnoreNotFound(w.client.Patch(ctx, vm.DeepCopy(), patch))
}

func (w *Watch) pod(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	owner, pod := assign.PodOwner(req.Namespace, req.Name), &corev1.Pod{}
	if err := w.client.Get(ctx, req.NamespacedName, pod); err != nil {
		if client.IgnoreNotFound(err) == nil {
			w.Pool.Align(owner, time.Time{}, nil)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	takesPart, err := w.selector(ctx, w.ForPods)
	if err != nil || !w.holds(ctx, pod, takesPart) {
		return reconcile.Result{}, err
	}
	w.Pool.Align(owner, w.Now(), assign.PodAddresses(pod))
	return reconcile.Result{}, nil
}
