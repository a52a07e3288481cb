package nodenet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/agent/link"
	"patchbay/internal/podnetworks"
	"patchbay/internal/requeue"
)

// auditInterval is how soon rules that somebody else removed are back.
const auditInterval = time.Minute

// everything is the only key: each reconciliation starts from a clean slate.
var everything = reconcile.Request{}

// nodeChanged leaves out kubelet's reports that all is as it was.
var nodeChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, isNode := e.ObjectOld.(*corev1.Node)
	after, alsoNode := e.ObjectNew.(*corev1.Node)
	return !isNode || !alsoNode || before.Annotations[podnetworks.NodeAnnotation] != after.Annotations[podnetworks.NodeAnnotation] ||
		!slices.Equal(before.Status.Addresses, after.Status.Addresses)
}}

// podMatters is true for pods with host ports, and for locked legs that come or go.
var podMatters = predicate.Funcs{
	CreateFunc: func(e event.CreateEvent) bool { return matters(e.Object) },
	DeleteFunc: func(e event.DeleteEvent) bool { return matters(e.Object) },
	UpdateFunc: func(e event.UpdateEvent) bool {
		before, isPod := e.ObjectOld.(*corev1.Pod)
		after, alsoPod := e.ObjectNew.(*corev1.Pod)
		return !isPod || !alsoPod || wantsHostPorts(after) || !sameLeg(before, after)
	},
}

func matters(o client.Object) bool {
	pod, ok := o.(*corev1.Pod)
	return ok && (wantsHostPorts(pod) || len(lockedLeg(pod)) > 0)
}

// namespaceMatters is true when a namespace gets or loses a network of its own.
var namespaceMatters = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	_, before := e.ObjectOld.GetLabels()[ovnv1.PrimaryNamespaceLabel]
	_, after := e.ObjectNew.GetLabels()[ovnv1.PrimaryNamespaceLabel]
	return before != after
}}

// AddToManager makes the network follow nodes, services, endpoints and the management port's device: ovs-vswitchd makes the
// device anew when it restarts.
func (n *Network) AddToManager(m manager.Manager) error {
	c, err := controller.NewUnmanaged("node-network", controller.Options{
		Reconciler: reconcile.Func(func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) { return n.reconcile(ctx) }),
	})
	if err != nil {
		return err
	}
	always := requeue.One(everything)
	var device requeue.Wakeups
	sources := []source.Source{
		source.Kind(m.GetCache(), client.Object(&corev1.Node{}), always, nodeChanged),
		source.Kind(m.GetCache(), client.Object(&corev1.Service{}), always),
		source.Kind(m.GetCache(), client.Object(&discoveryv1.EndpointSlice{}), always),
		source.Kind(m.GetCache(), client.Object(&corev1.Namespace{}), always, namespaceMatters),
		source.Kind(m.GetCache(), client.Object(&corev1.Pod{}), always, podMatters),
		device.Source(),
	}
	for _, s := range sources {
		if err := c.Watch(s); err != nil {
			return fmt.Errorf("node network: %w", err)
		}
	}
	if err := m.Add(manager.RunnableFunc(func(ctx context.Context) error { return n.watchDevice(ctx, &device) })); err != nil {
		return err
	}
	if err := m.Add(manager.RunnableFunc(n.awaitFailure)); err != nil {
		return err
	}
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		defer n.Close()
		return c.Start(ctx)
	}))
}

func (n *Network) reconcile(ctx context.Context) (reconcile.Result, error) {
	n.audit(ctx)
	err := n.Apply(ctx)
	switch {
	case errors.Is(err, ErrNoAddress), errors.Is(err, ErrNoSubnets), errors.Is(err, link.ErrNoDevice):
		n.Log.Info("node network waits", "for", err)
		return reconcile.Result{}, nil // the node object or the device will wake us
	case errors.Is(err, ErrWrongPlace):
		select {
		case n.failed <- err:
		default:
		}
		return reconcile.Result{}, err
	case err != nil:
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: auditInterval}, nil
}

// awaitFailure ends the agent when it must not go on.
func (n *Network) awaitFailure(ctx context.Context) error {
	select {
	case err := <-n.failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (n *Network) watchDevice(ctx context.Context, device *requeue.Wakeups) error {
	wake := func() { device.Wake(everything.NamespacedName) }
	for {
		err := link.Watch(ctx, ManagementDevice, wake)
		if !errors.Is(err, link.ErrMissed) || ctx.Err() != nil {
			return err
		}
		n.Log.Warn("watching the management port again", "error", err)
	}
}
