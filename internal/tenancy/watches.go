package tenancy

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/podnetworks"
)

func addIndexes(m manager.Manager) error {
	ctx, indexer := context.Background(), m.GetFieldIndexer()
	if err := indexer.IndexField(ctx, newDefinition(), definitionsByOwner, func(o client.Object) []string {
		if owner := metav1.GetControllerOf(o); owner != nil {
			return []string{string(owner.UID)}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := indexer.IndexField(ctx, newPod(), podsByAttachment, attachments); err != nil {
		return err
	}
	return indexer.IndexField(ctx, &virtv1.VirtualMachineInstance{}, instancesByNetwork, networksOf)
}

// attachments are the definitions that a pod uses, as "namespace/name".
func attachments(o client.Object) []string {
	networks, err := podnetworks.ParsePod(o.GetAnnotations())
	if err != nil {
		return nil
	}
	var keys []string
	for key := range networks {
		if key == podnetworks.Default {
			continue
		}
		parts := strings.Split(key, "/") // namespace/name, or namespace/name/1 of a second attachment
		keys = append(keys, strings.Join(parts[:min(len(parts), 2)], "/"))
	}
	return keys
}

func (t *Tenancy) addNamespaced(m manager.Manager) error {
	here := handler.EnqueueRequestsFromMapFunc(t.networksOfNamespace)
	return ctrl.NewControllerManagedBy(m).Named("userdefinednetwork").For(&ovnv1.UserDefinedNetwork{}).
		Watches(newDefinition(), here).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(t.networksOfNamespace), builder.WithPredicates(namespaceChanges)).
		Watches(newPod(), handler.EnqueueRequestsFromMapFunc(usedNamespaced), builder.WithPredicates(released)).
		WatchesRawSource(t.wakeUDN.Source()).
		Complete(reconcile.Func(t.reconcileNamespaced))
}

func (t *Tenancy) addClusterly(m manager.Manager) error {
	return ctrl.NewControllerManagedBy(m).Named("clusteruserdefinednetwork").For(&ovnv1.ClusterUserDefinedNetwork{}).
		Watches(newDefinition(), handler.EnqueueRequestsFromMapFunc(t.clusterNetworksOfDefinition)).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(t.clusterNetworksOfNamespace), builder.WithPredicates(namespaceChanges)).
		Watches(newPod(), handler.EnqueueRequestsFromMapFunc(usedClusterly), builder.WithPredicates(released)).
		WatchesRawSource(t.wakeC.Source()).
		Complete(reconcile.Func(t.reconcileClusterly))
}

// namespaceChanges lets through what a selector, or the primary label, may speak of.
var namespaceChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || !labels.Equals(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) ||
		(e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
}}

// released lets pods through that may have stopped using a network.
var released = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetAnnotations()[podnetworks.PodAnnotation] != e.ObjectNew.GetAnnotations()[podnetworks.PodAnnotation]
	},
	DeleteFunc:  func(event.DeleteEvent) bool { return true },
	GenericFunc: func(event.GenericEvent) bool { return false },
}

// usedNamespaced asks for the networks that a pod uses; a network, its definition and a ClusterUserDefinedNetwork share their name.
func usedNamespaced(_ context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, key := range attachments(o) {
		namespace, name, _ := strings.Cut(key, "/")
		requests = append(requests, request(namespace, name))
	}
	return requests
}

func usedClusterly(_ context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, key := range attachments(o) {
		_, name, _ := strings.Cut(key, "/")
		requests = append(requests, request("", name))
	}
	return requests
}

func request(namespace, name string) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: name}}
}

// networksOfNamespace asks for all networks of the namespace that the object is, or lies in.
func (t *Tenancy) networksOfNamespace(ctx context.Context, o client.Object) []reconcile.Request {
	var list ovnv1.UserDefinedNetworkList
	if err := t.client.List(ctx, &list, client.InNamespace(namespaceOf(o))); err != nil {
		return nil // the cache is not there yet; then every network is looked at anyway
	}
	var requests []reconcile.Request
	for _, u := range list.Items {
		requests = append(requests, request(u.Namespace, u.Name))
	}
	return requests
}

func namespaceOf(o client.Object) string {
	if _, ok := o.(*corev1.Namespace); ok {
		return o.GetName()
	}
	return o.GetNamespace()
}

// clusterNetworksOfNamespace asks for the networks that select a namespace.
func (t *Tenancy) clusterNetworksOfNamespace(ctx context.Context, o client.Object) []reconcile.Request {
	var list ovnv1.ClusterUserDefinedNetworkList
	if err := t.client.List(ctx, &list); err != nil {
		return nil // the cache is not there yet; then every network is looked at anyway
	}
	var requests []reconcile.Request
	for _, c := range list.Items {
		selector, err := metav1.LabelSelectorAsSelector(&c.Spec.NamespaceSelector)
		if err == nil && selector.Matches(labels.Set(o.GetLabels())) {
			requests = append(requests, request("", c.Name))
		}
	}
	return requests
}

// clusterNetworksOfDefinition asks for the network that made a definition, and for those that want to be where it is.
func (t *Tenancy) clusterNetworksOfDefinition(ctx context.Context, o client.Object) []reconcile.Request {
	var requests []reconcile.Request
	if owner := metav1.GetControllerOf(o); owner != nil && owner.Kind == clusterly {
		requests = append(requests, request("", owner.Name))
	}
	ns := &corev1.Namespace{}
	if err := t.client.Get(ctx, client.ObjectKey{Name: o.GetNamespace()}, ns); err != nil {
		return requests
	}
	return append(requests, t.clusterNetworksOfNamespace(ctx, ns)...)
}
