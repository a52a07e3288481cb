package hyperconverged

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/home"
	"patchbay/internal/requeue"
)

// reconciler makes the KubeVirt object follow HyperConverged. There is one of each, so every event asks for the same work.
type reconciler struct {
	client client.Client
	direct client.Client // not the cache: what is missing in it may only be late
}

// SetupWithManager runs the controller in a manager. direct reads and writes the API server itself.
func SetupWithManager(m manager.Manager, direct client.Client) error {
	r := &reconciler{client: m.GetClient(), direct: direct}
	toAll := requeue.One(reconcile.Request{})
	first := source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		queue.Add(reconcile.Request{}) // an empty cluster has no object whose event would start the work
		return nil
	})
	return ctrl.NewControllerManagedBy(m).Named("hyperconverged").
		WatchesRawSource(first).
		Watches(&hcov1beta1.HyperConverged{}, toAll).
		Watches(&virtv1.KubeVirt{}, toAll).
		Watches(&corev1.Node{}, toAll, builder.WithPredicates(nodeMatters)).
		Complete(r)
}

// Reconcile reads, decides and writes.
func (r *reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	h, err := r.hyperConverged(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	var nodes corev1.NodeList
	if err := r.client.List(ctx, &nodes); err != nil {
		return reconcile.Result{}, err
	}
	spec, badPatch := patched(h, KubeVirtSpec(h, len(nodes.Items)))
	if err := r.writeKubeVirt(ctx, spec, h.Namespace); err != nil {
		return reconcile.Result{}, err
	}
	badRange, err := r.writeMACRange(ctx, h)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, r.report(ctx, h, errors.Join(badPatch, badRange), migrationNetwork(h, nodes.Items))
}

// hyperConverged is the object that counts. When there is none an empty one is made, so that it can be edited.
func (r *reconciler) hyperConverged(ctx context.Context) (*hcov1beta1.HyperConverged, error) {
	var all hcov1beta1.HyperConvergedList
	if err := r.direct.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("find the HyperConverged object: %w", err)
	}
	if h := choose(all.Items); h != nil {
		return h, nil
	}
	if err := r.ensureNamespace(ctx); err != nil {
		return nil, err
	}
	h := &hcov1beta1.HyperConverged{ObjectMeta: metav1.ObjectMeta{Name: hcov1beta1.Name, Namespace: home.Namespace}}
	if err := r.direct.Create(ctx, h); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make the HyperConverged object: %w", err)
	}
	return h, nil
}

func (r *reconciler) ensureNamespace(ctx context.Context) error {
	err := r.direct.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: home.Namespace}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the namespace %s: %w", home.Namespace, err)
	}
	return nil
}

// writeKubeVirt undoes edits by hand: settings belong into HyperConverged. useEmulation has no place there, and stays.
func (r *reconciler) writeKubeVirt(ctx context.Context, spec virtv1.KubeVirtSpec, from string) error {
	kv := &virtv1.KubeVirt{}
	err := r.direct.Get(ctx, home.KubeVirt, kv)
	switch {
	case apierrors.IsNotFound(err):
		if err := r.ensureNamespace(ctx); err != nil {
			return err
		}
		kv = &virtv1.KubeVirt{ObjectMeta: metav1.ObjectMeta{
			Name: home.KubeVirt.Name, Namespace: home.KubeVirt.Namespace, Annotations: map[string]string{hcov1beta1.SourceAnnotation: from},
		}, Spec: spec}
		if err := r.direct.Create(ctx, kv); err != nil {
			return fmt.Errorf("make the KubeVirt object: %w", err)
		}
	case err != nil:
		return fmt.Errorf("read the KubeVirt object: %w", err)
	default:
		was, will := kv.Spec.Configuration.DeveloperConfiguration, spec.Configuration.DeveloperConfiguration
		if was != nil && was.UseEmulation && will != nil {
			will.UseEmulation = true
		}
		if equality.Semantic.DeepEqual(kv.Spec, spec) && kv.Annotations[hcov1beta1.SourceAnnotation] == from {
			break
		}
		kv.Spec = spec
		metav1.SetMetaDataAnnotation(&kv.ObjectMeta, hcov1beta1.SourceAnnotation, from)
		if err := r.direct.Update(ctx, kv); err != nil {
			return fmt.Errorf("write the KubeVirt object: %w", err)
		}
	}
	status := kv.Status.DeepCopy()
	describe(kv)
	if equality.Semantic.DeepEqual(*status, kv.Status) {
		return nil
	}
	return r.direct.Status().Update(ctx, kv)
}

// describe says that everything is deployed: whoever can read the object is served by it.
func describe(kv *virtv1.KubeVirt) {
	s := &kv.Status
	s.Phase = virtv1.KubeVirtPhaseDeployed
	s.OperatorVersion, s.TargetKubeVirtVersion, s.ObservedKubeVirtVersion = Version, Version, Version
	s.DefaultArchitecture = "amd64"
	generation := kv.Generation
	s.ObservedGeneration = &generation
	for _, c := range []struct {
		kind   virtv1.KubeVirtConditionType
		status corev1.ConditionStatus
		reason string
	}{
		{virtv1.KubeVirtConditionAvailable, corev1.ConditionTrue, "AllComponentsReady"},
		{virtv1.KubeVirtConditionProgressing, corev1.ConditionFalse, "AllComponentsReady"},
		{virtv1.KubeVirtConditionDegraded, corev1.ConditionFalse, "AllComponentsReady"},
		{virtv1.KubeVirtConditionCreated, corev1.ConditionTrue, "AllResourcesCreated"},
	} {
		setCondition(s, c.kind, c.status, c.reason)
	}
}

func setCondition(s *virtv1.KubeVirtStatus, kind virtv1.KubeVirtConditionType, status corev1.ConditionStatus, reason string) {
	for _, c := range s.Conditions {
		if c.Type == kind && c.Status == status {
			return
		}
	}
	now := metav1.Now()
	condition := virtv1.KubeVirtCondition{Type: kind, Status: status, Reason: reason, LastProbeTime: now, LastTransitionTime: now}
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			s.Conditions[i] = condition
			return
		}
	}
	s.Conditions = append(s.Conditions, condition)
}

// report writes the conditions that administrators wait for. problem says which setting is not followed, network how nodes get on with
// the network of migrations.
func (r *reconciler) report(ctx context.Context, h *hcov1beta1.HyperConverged, problem error, network *metav1.Condition) error {
	before := h.Status.DeepCopy()
	h.Status.ObservedGeneration = h.Generation
	if network == nil {
		meta.RemoveStatusCondition(&h.Status.Conditions, conditionMigrationNetwork)
	}
	for _, c := range conditions(h, problem, network) {
		c.ObservedGeneration = h.Generation
		meta.SetStatusCondition(&h.Status.Conditions, c)
	}
	if !tainted(h) {
		meta.RemoveStatusCondition(&h.Status.Conditions, conditionTainted)
	}
	if equality.Semantic.DeepEqual(*before, h.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.direct.Status().Update(ctx, h))
}
