package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

func newPod() client.Object { return &corev1.Pod{} }

func (n *Network) addPods(m manager.Manager) error {
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, pod := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
		return old.UID != pod.UID || old.Spec.NodeName != pod.Spec.NodeName || completed(old) != completed(pod) ||
			old.Annotations[podnetworks.PodAnnotation] != pod.Annotations[podnetworks.PodAnnotation]
	}}
	return ctrl.NewControllerManagedBy(m).Named("network-pods").For(&corev1.Pod{}, builder.WithPredicates(relevant)).
		WatchesRawSource(source.Func(n.wakePods.start)).
		WithOptions(n.options(n.Workers)).Complete(n.afterRecovery(n.reconcilePod))
}

func podOwner(key client.ObjectKey) string { return "pod/" + key.String() }

// completed pods count as deleted: their containers do not come back and their addresses are free.
func completed(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// connected tells whether a pod has to have a port on the default network.
func connected(pod *corev1.Pod) bool {
	return pod.Spec.NodeName != "" && !pod.Spec.HostNetwork && !completed(pod)
}

func (n *Network) reconcilePod(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	err := n.client.Get(ctx, req.NamespacedName, &pod)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	if err != nil || !connected(&pod) {
		n.forgetPod(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	err = n.connectPod(ctx, &pod)
	switch {
	case errors.Is(err, errNoSlice):
		return reconcile.Result{}, nil // woken with the node
	case errors.Is(err, ipam.ErrExhausted):
		n.warn(&pod, reasonPodFailed, "failed to assign pod addresses for %s: %v; the pod waits until another pod of the node ends", req.NamespacedName, err)
		return reconcile.Result{}, nil // woken when an address is given back
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return reconcile.Result{}, nil // deleted or replaced meanwhile; its event comes
	}
	return reconcile.Result{}, err
}

func (n *Network) forgetPod(key client.ObjectKey) {
	n.Rows.Delete(podOwner(key))
	n.wakePods.wake(n.book.release(key))
}

// connectPod gives a pod its addresses and its port, and writes the annotation that the node's agent waits for. The port is
// on its way to the database while the annotation is on its way to the agent.
func (n *Network) connectPod(ctx context.Context, pod *corev1.Pod) error {
	key := client.ObjectKeyFromObject(pod)
	networks, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil {
		n.warn(pod, reasonPodFailed, "%v; it is written anew", err)
		networks = map[string]podnetworks.Network{}
	}
	if known, ok := networks[podnetworks.Default]; ok && !n.book.has(key, string(pod.UID)) {
		if err := n.restorePod(pod, known); err != nil {
			n.warn(pod, reasonPodFailed, "the addresses in annotation %s cannot be used: %v", podnetworks.PodAnnotation, err)
			if pod.Status.PodIP != "" {
				return nil // it runs with them; changing them would cut it off
			}
		}
	}
	ips, err := n.book.take(key, string(pod.UID), pod.Spec.NodeName)
	if err != nil {
		return err
	}
	network := n.network(ips)
	n.Rows.Set(podOwner(key), topology.PodRows(topology.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName, Network: network,
	}))
	return n.annotatePod(ctx, pod, networks, network)
}

// network is everything that follows from a pod's addresses.
func (n *Network) network(ips []netip.Prefix) podnetworks.Network {
	network := podnetworks.Network{
		IPs: ips, MAC: podnetworks.MAC(ips[0].Addr()), MTU: n.Settings.PodMTU, Role: podnetworks.Primary,
	}
	for _, ip := range ips {
		network.Gateways = append(network.Gateways, podnetworks.Gateway(ip))
	}
	return network
}

func (n *Network) annotatePod(ctx context.Context, pod *corev1.Pod, networks map[string]podnetworks.Network, network podnetworks.Network) error {
	before := pod.Annotations[podnetworks.PodAnnotation]
	networks[podnetworks.Default] = network
	text, err := podnetworks.FormatPod(networks)
	if err != nil || text == before {
		return err
	}
	if err := n.annotate(ctx, pod, podnetworks.PodAnnotation, text); err != nil {
		return err
	}
	n.Log.Info("pod has addresses", "pod", client.ObjectKeyFromObject(pod), "node", pod.Spec.NodeName, "ips", network.IPs)
	return nil
}

// restorePod books the addresses that a pod's annotation says. Everything else in the annotation follows from them.
func (n *Network) restorePod(pod *corev1.Pod, network podnetworks.Network) error {
	var ips []netip.Addr
	for _, ip := range network.IPs {
		ips = append(ips, ip.Addr())
	}
	if err := n.book.restore(client.ObjectKeyFromObject(pod), string(pod.UID), pod.Spec.NodeName, ips); err != nil {
		return fmt.Errorf("restore addresses: %w", err)
	}
	return nil
}
