// Package reclaim takes addresses back that belong to nobody any more: those of networks of other CNI plugins, which nodes keep in
// IPPools. A node gives back what its pods had; this is for pods of nodes that died, and for virtual machines, whose addresses no pod
// takes along. The package must not give addresses out.
package reclaim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/podnetworks"
	"patchbay/internal/requeue"
)

const (
	// Grace is how long an address stays reserved after its owner is gone: a pod that was deleted by force may run on for a while.
	Grace = time.Minute
	// Period is how often everything is looked at, whatever happens.
	Period = 10 * time.Minute
)

// Config is what a Reclaimer needs.
type Config struct {
	Client    client.Client // reads a cache
	Direct    client.Reader // reads the API server itself: what the cache does not have may only be late
	Namespace string        // of the pools
	Grace     time.Duration
	Log       *slog.Logger
}

// Reclaimer is the controller.
type Reclaimer struct {
	Config

	mu     sync.Mutex
	absent map[string]time.Time // since when an owner is known to be gone
}

// New makes a Reclaimer.
func New(c Config) *Reclaimer { return &Reclaimer{Config: c, absent: map[string]time.Time{}} }

// all is the only request: there are few pools, and owners are in several.
var all = reconcile.Request{NamespacedName: types.NamespacedName{Name: "all"}}

// AddToManager runs the controller in a manager.
func (r *Reclaimer) AddToManager(m manager.Manager) error {
	look := requeue.One(all)
	b := ctrl.NewControllerManagedBy(m).Named("reclaim").
		Watches(&wbv1alpha1.IPPool{}, look).Watches(&wbv1alpha1.OverlappingRangeIPReservation{}, look)
	for _, owner := range []client.Object{&corev1.Pod{}, &virtv1.VirtualMachine{}, &virtv1.VirtualMachineInstance{}, &corev1.Node{}} {
		b = b.Watches(owner, look, builder.WithPredicates(leaves))
	}
	return b.Complete(r)
}

// Reconcile looks at all pools and reservations.
func (r *Reclaimer) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var pools wbv1alpha1.IPPoolList
	if err := r.Client.List(ctx, &pools, client.InNamespace(r.Namespace)); err != nil {
		return reconcile.Result{}, err
	}
	var reservations wbv1alpha1.OverlappingRangeIPReservationList
	if err := r.Client.List(ctx, &reservations, client.InNamespace(r.Namespace)); err != nil {
		return reconcile.Result{}, err
	}
	look := &look{Reclaimer: r, context: ctx, known: map[holder]verdict{}, wait: Period}
	for i := range reservations.Items {
		if err := look.reservation(&reservations.Items[i]); err != nil {
			return reconcile.Result{}, err
		}
	}
	for i := range pools.Items {
		if err := look.pool(&pools.Items[i]); err != nil {
			return reconcile.Result{}, err
		}
	}
	r.forget(look.known)
	return reconcile.Result{RequeueAfter: look.wait}, nil
}

// holder is one interface of one owner.
type holder struct{ podRef, iface string }

type verdict struct {
	gone bool
	due  time.Duration // until it may be taken
}

// look is one pass. Each holder is looked up once.
type look struct {
	*Reclaimer
	context context.Context
	known   map[holder]verdict
	wait    time.Duration
}

// gone says whether the address of a holder is to be taken back now.
func (l *look) gone(h holder) (bool, error) {
	v, ok := l.known[h]
	if !ok {
		exists, err := l.exists(l.context, h)
		if err != nil {
			return false, err
		}
		if !exists {
			v = verdict{gone: true, due: l.since(h)}
		}
		l.known[h] = v
	}
	if v.gone && v.due > 0 {
		l.wait = min(l.wait, v.due)
	}
	return v.gone && v.due <= 0, nil
}

// since says how long a holder that is gone keeps its address yet.
func (r *Reclaimer) since(h holder) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := h.podRef + " " + h.iface
	first, ok := r.absent[key]
	if !ok {
		first = time.Now()
		r.absent[key] = first
	}
	return r.Grace - time.Since(first)
}

// forget drops what was known of holders that are there, or that no pool knows any more.
func (r *Reclaimer) forget(known map[holder]verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	still := map[string]time.Time{}
	for h, v := range known {
		if key := h.podRef + " " + h.iface; v.gone && v.due > 0 {
			still[key] = r.absent[key]
		}
	}
	r.absent = still
}

// exists asks the API server. An owner that somebody else has written is none of ours, and stays.
func (r *Reclaimer) exists(ctx context.Context, h holder) (bool, error) {
	owner, ok := wbv1alpha1.ParseOwner(h.podRef)
	if !ok {
		return true, nil
	}
	key := client.ObjectKey{Namespace: owner.Namespace, Name: owner.Name}
	switch owner.Kind {
	case wbv1alpha1.OwnerMachine:
		return r.machineHas(ctx, key, h.iface)
	case wbv1alpha1.OwnerNode:
		return r.find(ctx, key, &corev1.Node{})
	}
	return r.find(ctx, key, &corev1.Pod{})
}

// machineHas says whether a virtual machine, running or not, has the interface.
func (r *Reclaimer) machineHas(ctx context.Context, key client.ObjectKey, iface string) (bool, error) {
	vm, vmi := &virtv1.VirtualMachine{}, &virtv1.VirtualMachineInstance{}
	isVM, err := r.find(ctx, key, vm)
	if err != nil {
		return false, err
	}
	isVMI, err := r.find(ctx, key, vmi)
	if err != nil {
		return false, err
	}
	var networks []virtv1.Network
	if isVM && vm.Spec.Template != nil {
		networks = append(networks, vm.Spec.Template.Spec.Networks...)
	}
	if isVMI {
		networks = append(networks, vmi.Spec.Networks...)
	}
	return slices.ContainsFunc(networks, func(n virtv1.Network) bool {
		return n.Multus != nil && (n.Multus.Default || podnetworks.InterfaceName(n.Name) == iface)
	}), nil
}

func (r *Reclaimer) find(ctx context.Context, key client.ObjectKey, o client.Object) (bool, error) {
	err := r.Client.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		err = r.Direct.Get(ctx, key, o)
	}
	return err == nil, client.IgnoreNotFound(err)
}

func (l *look) reservation(reservation *wbv1alpha1.OverlappingRangeIPReservation) error {
	gone, err := l.gone(holder{reservation.Spec.PodRef, reservation.Spec.IfName})
	if err != nil || !gone {
		return err
	}
	err = l.Client.Delete(l.context, reservation, client.Preconditions{UID: &reservation.UID, ResourceVersion: &reservation.ResourceVersion})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // somebody else's by now
	}
	if err != nil {
		return fmt.Errorf("take back address %s: %w", reservation.Name, err)
	}
	l.Log.Info("address taken back", "address", reservation.Name, "owner", reservation.Spec.PodRef)
	return nil
}

// pool is written as it was read: when a node has changed it meanwhile, it is looked at again.
func (l *look) pool(pool *wbv1alpha1.IPPool) error {
	changed := pool.DeepCopy()
	for key, a := range pool.Spec.Allocations {
		gone, err := l.gone(holder{a.PodRef, a.IfName})
		if err != nil {
			return err
		}
		if gone {
			delete(changed.Spec.Allocations, key)
		}
	}
	if len(changed.Spec.Allocations) == len(pool.Spec.Allocations) {
		return nil
	}
	err := l.Client.Update(l.context, changed)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // its change is an event that brings us back
	}
	if err != nil {
		return fmt.Errorf("take back addresses of pool %s: %w", pool.Name, err)
	}
	l.Log.Info("addresses taken back", "pool", pool.Name, "addresses", len(pool.Spec.Allocations)-len(changed.Spec.Allocations))
	return nil
}

// leaves are the events of owners that matter: they go, or a virtual machine's interfaces change.
var leaves = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		_, vm := e.ObjectNew.(*virtv1.VirtualMachine)
		return vm && e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration()
	},
	GenericFunc: func(event.GenericEvent) bool { return false },
}
