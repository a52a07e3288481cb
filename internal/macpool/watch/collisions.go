package watch

import (
	"context"
	"slices"
	"strings"
	"sync"

	hooks "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/machinepod"
	"patchbay/internal/macpool/assign"
	"patchbay/internal/requeue"
)

// MACCollision is the type and reason of the condition and the reason of the event.
const MACCollision = "MACCollision"

const (
	vmiPrefix = "vmi/"
	podPrefix = "pod/"
)

// detector reports addresses that are in use twice.
type detector struct {
	*Watch
	mu    sync.Mutex
	table *table

	wakeInstances requeue.Wakeups
}

// addCollisions watches running instances and pods, and what decides whether they count.
func (w *Watch) addCollisions(m manager.Manager) error {
	d := &detector{Watch: w, table: newTable()}
	ours := builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == w.Webhooks }))
	relabelled := builder.WithPredicates(predicate.LabelChangedPredicate{})
	err := ctrl.NewControllerManagedBy(m).Named("mac-collisions").For(&virtv1.VirtualMachineInstance{}).
		WatchesRawSource(d.wakeInstances.Source()).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(d.instancesOf), relabelled).
		Watches(&hooks.MutatingWebhookConfiguration{}, handler.EnqueueRequestsFromMapFunc(d.instancesOf), ours).
		Complete(reconcile.Func(d.instance))
	if err != nil {
		return err
	}
	attached := builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
		pod := o.(*corev1.Pod)
		return !machinepod.Is(pod) && assign.Attached(pod) && len(assign.PodAddresses(pod)) > 0
	}))
	return ctrl.NewControllerManagedBy(m).Named("mac-collisions-pods").For(&corev1.Pod{}, attached).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(d.podsOf), relabelled).
		Complete(reconcile.Func(d.pod))
}

// instancesOf asks for the instances of a namespace; for all of them when a webhook's selector changed.
func (d *detector) instancesOf(ctx context.Context, o client.Object) []reconcile.Request {
	var in []client.ListOption
	if ns, is := o.(*corev1.Namespace); is {
		in = append(in, client.InNamespace(ns.Name))
	}
	var all virtv1.VirtualMachineInstanceList
	if d.client.List(ctx, &all, in...) != nil {
		return nil // the cache has not begun; it will show every instance
	}
	var requests []reconcile.Request
	for i := range all.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
	}
	return requests
}

func (d *detector) podsOf(ctx context.Context, o client.Object) []reconcile.Request {
	var all corev1.PodList
	if d.client.List(ctx, &all, client.InNamespace(o.GetName())) != nil {
		return nil
	}
	var requests []reconcile.Request
	for i := range all.Items {
		if pod := &all.Items[i]; !machinepod.Is(pod) && len(assign.PodAddresses(pod)) > 0 {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(pod)})
		}
	}
	return requests
}

func (d *detector) instance(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	me, vmi := member(vmiPrefix+req.String()), &virtv1.VirtualMachineInstance{}
	if err := d.client.Get(ctx, req.NamespacedName, vmi); err != nil {
		if client.IgnoreNotFound(err) == nil {
			d.note(ctx, me, use{})
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	takesPart, err := d.selector(ctx, d.ForVMs)
	if err != nil {
		return reconcile.Result{}, err
	}
	var u use
	if vmi.Status.Phase == virtv1.Running && d.matches(ctx, vmi.Namespace, takesPart) {
		u = useOf(vmi)
	}
	d.note(ctx, me, u)
	return reconcile.Result{}, d.condition(ctx, me, vmi)
}

func (d *detector) pod(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	me, pod := member(podPrefix+req.String()), &corev1.Pod{}
	if err := d.client.Get(ctx, req.NamespacedName, pod); err != nil {
		if client.IgnoreNotFound(err) == nil {
			d.note(ctx, me, use{})
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	takesPart, err := d.selector(ctx, d.ForPods)
	if err != nil {
		return reconcile.Result{}, err
	}
	var u use
	if pod.Status.Phase == corev1.PodRunning && d.matches(ctx, pod.Namespace, takesPart) {
		for _, a := range assign.PodAddresses(pod) {
			u.macs = append(u.macs, a.String())
		}
		u.macs = sorted(u.macs)
	}
	d.note(ctx, me, u)
	return reconcile.Result{}, nil
}

// useOf is what an instance really uses, NICs that only the guest knows included.
func useOf(vmi *virtv1.VirtualMachineInstance) use {
	var u use
	for _, nic := range vmi.Status.Interfaces {
		if mac := assign.Normalize(nic.MAC); mac != "" {
			u.macs = append(u.macs, mac)
		}
	}
	if s := vmi.Status.MigrationState; s != nil {
		switch {
		case s.SourceState != nil && s.SourceState.MigrationUID != "":
			u.identity = string(s.SourceState.MigrationUID)
		case s.TargetState != nil && s.TargetState.MigrationUID != "":
			u.identity = string(s.TargetState.MigrationUID)
		}
	}
	u.macs = sorted(u.macs)
	return u
}

func sorted(macs []string) []string {
	slices.Sort(macs)
	return slices.Compact(macs)
}

// note takes down what a member uses, and reports the addresses whose users have changed.
func (d *detector) note(ctx context.Context, me member, u use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	shared := map[member]bool{}
	for _, mac := range d.table.set(me, u) {
		users := d.table.users(mac)
		if d.table.collide(mac) {
			d.gauges.set(mac, len(users))
			d.announce(ctx, collisionText(mac, users), users)
		} else {
			d.gauges.set(mac, 0)
		}
		for _, other := range users {
			shared[other] = true
		}
	}
	for other := range shared {
		if key, is := strings.CutPrefix(string(other), vmiPrefix); is && other != me {
			d.wakeInstances.Wake(keyOf(key))
		}
	}
}

// keyOf turns "namespace/name" into a key.
func keyOf(key string) client.ObjectKey {
	namespace, name, _ := strings.Cut(key, "/")
	return client.ObjectKey{Namespace: namespace, Name: name}
}

// announce puts an event on everything that shares an address.
func (d *detector) announce(ctx context.Context, text string, users []member) {
	for _, m := range users {
		var o client.Object = &corev1.Pod{}
		kind, key, _ := strings.Cut(string(m), "/")
		if kind+"/" == vmiPrefix {
			o = &virtv1.VirtualMachineInstance{}
		}
		if d.client.Get(ctx, keyOf(key), o) == nil {
			d.events.Eventf(o, nil, corev1.EventTypeWarning, MACCollision, "Detect", "%s", text)
		}
	}
}

// condition makes an instance say what it shares.
func (d *detector) condition(ctx context.Context, me member, vmi *virtv1.VirtualMachineInstance) error {
	d.mu.Lock()
	text := strings.Join(d.table.collisions(me), "; ")
	d.mu.Unlock()
	at := slices.IndexFunc(vmi.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool { return c.Type == MACCollision })
	if at < 0 && text == "" || at >= 0 && vmi.Status.Conditions[at].Message == text {
		return nil
	}
	after := vmi.DeepCopy()
	wanted := virtv1.VirtualMachineInstanceCondition{
		Type: MACCollision, Status: corev1.ConditionTrue, Reason: MACCollision, Message: text, LastTransitionTime: metav1.NewTime(d.Now()),
	}
	switch {
	case text == "":
		after.Status.Conditions = slices.Delete(after.Status.Conditions, at, at+1)
	case at < 0:
		after.Status.Conditions = append(after.Status.Conditions, wanted)
	default:
		wanted.LastTransitionTime = vmi.Status.Conditions[at].LastTransitionTime
		after.Status.Conditions[at] = wanted
	}
	patch := client.MergeFromWithOptions(vmi, client.MergeFromWithOptimisticLock{})
	err := d.client.Patch(ctx, after, patch)
	if apierrors.IsConflict(err) {
		return nil // the cache will show what was changed meanwhile
	}
	return client.IgnoreNotFound(err)
}
