package vm

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/vm/launcherpod"
)

// Indexes of the cache, so that no step lists more than it is about.
const (
	podsByInstance   = "patchbay.instance" // launcher pods, by the UID of their instance
	instancesByClaim = "patchbay.claim"    // instances, by the persistent volume claims of their volumes
	instancesByNode  = "patchbay.node"     // instances, by their node
	instancesWaiting = "patchbay.waiting"  // instances that have no pod yet
	migrationsOf     = "patchbay.machine"  // migrations, by the name of their instance
)

func addIndexes(mgr ctrl.Manager) error {
	ctx, indexer := context.Background(), mgr.GetFieldIndexer()
	for _, index := range indexes {
		if err := indexer.IndexField(ctx, index.object, index.name, index.keys); err != nil {
			return err
		}
	}
	return nil
}

var indexes = []struct {
	object client.Object
	name   string
	keys   client.IndexerFunc
}{
	{&corev1.Pod{}, podsByInstance, func(o client.Object) []string {
		if uid := o.GetLabels()[virtv1.CreatedByLabel]; uid != "" {
			return []string{uid}
		}
		return nil
	}},
	{&virtv1.VirtualMachineInstance{}, instancesByClaim, func(o client.Object) []string {
		var claims []string
		for _, v := range o.(*virtv1.VirtualMachineInstance).Spec.Volumes {
			if name := launcherpod.ClaimName(v); name != "" {
				claims = append(claims, name)
			}
		}
		return claims
	}},
	{&virtv1.VirtualMachineInstance{}, instancesByNode, func(o client.Object) []string {
		if node := o.(*virtv1.VirtualMachineInstance).Status.NodeName; node != "" {
			return []string{node}
		}
		return nil
	}},
	{&virtv1.VirtualMachineInstanceMigration{}, migrationsOf, func(o client.Object) []string {
		return []string{o.(*virtv1.VirtualMachineInstanceMigration).Spec.VMIName}
	}},
	{&virtv1.VirtualMachineInstance{}, instancesWaiting, func(o client.Object) []string {
		if phase := o.(*virtv1.VirtualMachineInstance).Status.Phase; phase == virtv1.VmPhaseUnset || phase == virtv1.Pending {
			return []string{"true"}
		}
		return nil
	}},
}

// ofSameName asks for the object of the same name: a machine and its instance share it.
func ofSameName(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(o)}}
}

// ofOwner asks for the instance that a pod belongs to.
func ofOwner(_ context.Context, o client.Object) []reconcile.Request {
	owner := metav1.GetControllerOf(o)
	if owner == nil || owner.Kind != virtv1.VirtualMachineInstanceGroupVersionKind.Kind {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: owner.Name}}}
}

// instancesOf asks for the instances that an index holds for an object's name.
func instancesOf(c client.Client, index string) handler.MapFunc {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		var list virtv1.VirtualMachineInstanceList
		if err := c.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{index: o.GetName()}); err != nil {
			return nil // the cache has no such index before it runs; then every instance is looked at anyway
		}
		return requestsFor(list)
	}
}

func requestsFor(list virtv1.VirtualMachineInstanceList) []reconcile.Request {
	var requests []reconcile.Request
	for _, vmi := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&vmi)})
	}
	return requests
}

// claimsOf reads the existing claims of volumes, by name.
func claimsOf(ctx context.Context, r reader, namespace string, volumes []virtv1.Volume) (map[string]*corev1.PersistentVolumeClaim, error) {
	claims := map[string]*corev1.PersistentVolumeClaim{}
	for _, v := range volumes {
		name := launcherpod.ClaimName(v)
		if name == "" {
			continue
		}
		claim := &corev1.PersistentVolumeClaim{}
		found, err := get(ctx, r, types.NamespacedName{Namespace: namespace, Name: name}, claim)
		if err != nil {
			return nil, err
		}
		if found {
			claims[name] = claim
		}
	}
	return claims, nil
}

// get reads an object; one that does not exist is no error.
func get(ctx context.Context, r reader, key types.NamespacedName, o client.Object) (found bool, err error) {
	err = r.Get(ctx, key, o)
	return err == nil, client.IgnoreNotFound(err)
}
