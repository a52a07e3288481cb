package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
)

func newPod() client.Object { return &corev1.Pod{} }

func (n *Network) addPods(m manager.Manager) error {
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, pod := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
		return old.UID != pod.UID || old.Spec.NodeName != pod.Spec.NodeName || completed(old) != completed(pod) ||
			old.Annotations[podnetworks.PodAnnotation] != pod.Annotations[podnetworks.PodAnnotation] ||
			!maps.Equal(old.Labels, pod.Labels) || old.Annotations[openPortsAnnotation] != pod.Annotations[openPortsAnnotation] ||
			old.Annotations[nadv1.NetworkAttachmentAnnot] != pod.Annotations[nadv1.NetworkAttachmentAnnot]
	}}
	return ctrl.NewControllerManagedBy(m).Named("network-pods").For(&corev1.Pod{}, builder.WithPredicates(relevant)).
		WatchesRawSource(n.wakePods.Source()).
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
		return reconcile.Result{}, n.forgetPod(ctx, req.NamespacedName)
	}
	since := n.waits.now()
	err = n.connectPod(ctx, &pod)
	switch {
	case errors.Is(err, errNoSlice):
		return reconcile.Result{}, nil // woken with the node
	case err != nil && len(awaited(err)) > 0:
		n.warn(&pod, reasonPodFailed, "%v", err)
		if !n.waits.add(req.NamespacedName, err, since) {
			return reconcile.Result{RequeueAfter: time.Millisecond}, nil // something came meanwhile
		}
		return reconcile.Result{}, nil // woken when it comes
	case errors.Is(err, ipam.ErrExhausted):
		n.warn(&pod, reasonPodFailed, "failed to assign pod addresses for %s: %v; the pod waits until another pod of the node ends", req.NamespacedName, err)
		return reconcile.Result{}, nil // woken when an address is given back
	case errors.As(err, new(*wishError)):
		n.warn(&pod, reasonPodFailed, "%v", err)
		return reconcile.Result{}, nil // its next event comes when it is changed
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return reconcile.Result{}, nil // deleted or replaced meanwhile; its event comes
	}
	return reconcile.Result{}, err
}

// wishError says that a pod asks for something that nobody can have.
type wishError struct{ error }

func (w *wishError) Unwrap() error { return w.error }

func (n *Network) forgetPod(ctx context.Context, key client.ObjectKey) error {
	n.Rows.Delete(podOwner(key))
	n.enforcer.SetPorts(podOwner(key), nil)
	n.wakePods.Wake(n.book.release(key)...)
	freed, machine := n.tenants.leave(key)
	n.freed(ctx, freed)
	if machine.Name == "" {
		return nil
	}
	return n.placeMachine(ctx, machine)
}

// connectPod gives a pod its addresses and its ports, and writes the annotation that the node's agent waits for. The ports are
// on their way to the database while the annotation is on its way to the agent.
//
// The agent takes what it finds for all that the pod gets, so a pod has nothing written until it has everything. Later changes
// are written as they come.
func (n *Network) connectPod(ctx context.Context, pod *corev1.Pod) error {
	key := client.ObjectKeyFromObject(pod)
	known, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil {
		n.warn(pod, reasonPodFailed, "%v; it is written anew", err)
		known = map[string]podnetworks.Network{}
	}
	had, annotated := known[podnetworks.Default]
	if annotated && !n.book.has(key, string(pod.UID)) {
		if err := n.restorePod(pod, had); err != nil {
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
	beside, err := n.attachPod(ctx, pod, known)
	if err != nil || beside.err != nil && !annotated {
		return errors.Join(err, beside.err)
	}
	beside.entries[podnetworks.Default] = n.network(ips, beside.tenant)
	if err := n.setPodRows(ctx, pod, beside.entries[podnetworks.Default]); err != nil {
		return err
	}
	return errors.Join(n.annotatePod(ctx, pod, beside.entries), beside.err)
}

// network is everything that follows from a pod's addresses on the default network, which leads a tenant's pod nowhere.
func (n *Network) network(ips []netip.Prefix, tenant bool) podnetworks.Network {
	network := podnetworks.Network{
		IPs: ips, MAC: podnetworks.MAC(ips[0].Addr()), MTU: n.Settings.PodMTU, Role: podnetworks.Primary,
	}
	if tenant {
		network.Role, network.Routes = podnetworks.InfrastructureLocal, n.lockedRoutes(ips)
		return network
	}
	for _, ip := range ips {
		network.Gateways = append(network.Gateways, podnetworks.Gateway(ip))
	}
	return network
}

func (n *Network) annotatePod(ctx context.Context, pod *corev1.Pod, networks map[string]podnetworks.Network) error {
	text, err := podnetworks.FormatPod(networks)
	if err != nil || text == pod.Annotations[podnetworks.PodAnnotation] {
		return err
	}
	if err := n.annotate(ctx, pod, podnetworks.PodAnnotation, text); err != nil {
		return err
	}
	var ips []netip.Prefix
	for _, key := range slices.Sorted(maps.Keys(networks)) {
		ips = append(ips, networks[key].IPs...)
	}
	n.Log.Info("pod has addresses", "pod", client.ObjectKeyFromObject(pod), "node", pod.Spec.NodeName, "ips", ips)
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
