package volume

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const reasonFailed = "ProvisioningFailed"

// Config is what the provisioner needs besides a manager.
type Config struct {
	// NodesDir is the directory with one subdirectory per node, the same path on every node.
	NodesDir string
}

// SetupWithManager adds the storage class and the controllers of claims and volumes.
func SetupWithManager(mgr ctrl.Manager, config Config) error {
	p := &provisioner{client: mgr.GetClient(), events: mgr.GetEventRecorder("local-path-provisioner"), nodes: config.NodesDir}
	if err := mgr.Add(manager.RunnableFunc(p.addClass)); err != nil {
		return fmt.Errorf("storage class %s: %w", ClassName, err)
	}
	err := ctrl.NewControllerManagedBy(mgr).Named("local-path-claims").
		For(&corev1.PersistentVolumeClaim{}).
		Complete(reconcile.Func(p.provision))
	if err != nil {
		return fmt.Errorf("claim controller: %w", err)
	}
	err = ctrl.NewControllerManagedBy(mgr).Named("local-path-volumes").
		For(&corev1.PersistentVolume{}).
		Watches(&corev1.Node{}, handler.Funcs{DeleteFunc: p.nodeGone}).
		Complete(reconcile.Func(p.reclaim))
	if err != nil {
		return fmt.Errorf("volume controller: %w", err)
	}
	return nil
}

type provisioner struct {
	client client.Client
	events events.EventRecorder
	nodes  string
}

// addClass makes the storage class when there is none. One that exists is left alone: an administrator may have changed it.
func (p *provisioner) addClass(ctx context.Context) error {
	if err := client.IgnoreAlreadyExists(p.client.Create(ctx, Class())); err != nil {
		return fmt.Errorf("create storage class %s: %w", ClassName, err)
	}
	return nil
}

// provision makes the volume of a claim, once the scheduler has chosen a node.
func (p *provisioner) provision(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	claim := &corev1.PersistentVolumeClaim{}
	if err := p.client.Get(ctx, req.NamespacedName, claim); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !wantsVolume(claim) || claim.Spec.StorageClassName == nil {
		return reconcile.Result{}, nil
	}
	class := &storagev1.StorageClass{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, class); err != nil {
		return reconcile.Result{}, fmt.Errorf("storage class of claim %s: %w", req, err)
	}
	if err := unsupported(claim, class); err != nil {
		p.events.Eventf(claim, nil, corev1.EventTypeWarning, reasonFailed, reasonFailed, "%s", err)
		return reconcile.Result{}, nil // only an edit helps, and brings the claim back
	}
	name := claim.Annotations[selectedNodeAnnotation]
	if name == "" {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, p.create(ctx, claim, class, name)
}

func (p *provisioner) create(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, nodeName string) error {
	node := &corev1.Node{}
	if err := p.client.Get(ctx, client.ObjectKey{Name: nodeName}, node); err != nil {
		return fmt.Errorf("node of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	volume, err := newVolume(claim, class, node, p.nodes)
	if err != nil {
		return err
	}
	if err := p.client.Create(ctx, volume); err != nil {
		return client.IgnoreAlreadyExists(err)
	}
	slog.InfoContext(ctx, "made volume", "volume", volume.Name, "claim", claim.Namespace+"/"+claim.Name, "node", nodeName)
	return nil
}

// reclaim deletes volumes whose claim is gone, and lets those go whose node is.
func (p *provisioner) reclaim(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	v := &corev1.PersistentVolume{}
	if err := p.client.Get(ctx, req.NamespacedName, v); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	switch {
	case !isOurs(v):
	case v.DeletionTimestamp == nil && isDone(v):
		// The version holds only while the volume is released: one that is claimed anew meanwhile stays.
		err := p.client.Delete(ctx, v, &client.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &v.UID, ResourceVersion: &v.ResourceVersion}})
		if apierrors.IsConflict(err) {
			return reconcile.Result{}, nil // its change brings it back
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	case mayClear(v):
		return reconcile.Result{}, p.forget(ctx, v)
	}
	return reconcile.Result{}, nil
}

// forget lets a volume go whose node does not exist any more, and with it nobody who could remove the directory.
func (p *provisioner) forget(ctx context.Context, v *corev1.PersistentVolume) error {
	err := p.client.Get(ctx, client.ObjectKey{Name: v.Annotations[selectedNodeAnnotation]}, &corev1.Node{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	patch := client.MergeFromWithOptions(v.DeepCopy(), client.MergeFromWithOptimisticLock{})
	controllerutil.RemoveFinalizer(v, Finalizer)
	return client.IgnoreNotFound(p.client.Patch(ctx, v, patch))
}
