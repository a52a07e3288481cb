package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/migrate"
	"patchbay/internal/qemu"
	"patchbay/internal/vm/launcherpod"
	"patchbay/internal/vm/lifecycle"
)

// migrations steps live migrations. They are taken one at a time: limits are counted over all of them.
type migrations struct {
	cached    client.Client
	live      reader
	executor  executor
	config    Config
	instances *instances
}

func newMigrations(cached client.Client, live reader, e executor, config Config) *migrations {
	return &migrations{cached: cached, live: live, executor: e, config: config, instances: newInstances(cached, live, e, config)}
}

func (c *migrations) setUp(mgr ctrl.Manager) error {
	options := c.config.options()
	return ctrl.NewControllerManagedBy(mgr).
		Named("virtualmachineinstancemigration").
		For(&virtv1.VirtualMachineInstanceMigration{}).
		Watches(&virtv1.VirtualMachineInstance{}, handler.EnqueueRequestsFromMapFunc(c.ofInstance)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(c.ofPod)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1, RateLimiter: options.RateLimiter}).
		Complete(c)
}

// ofInstance asks for the migrations of an instance that are not over.
func (c *migrations) ofInstance(ctx context.Context, o client.Object) []reconcile.Request {
	return c.active(ctx, o.GetNamespace(), o.GetName())
}

func (c *migrations) ofPod(ctx context.Context, o client.Object) []reconcile.Request {
	name := o.GetAnnotations()[virtv1.DomainAnnotation]
	if name == "" {
		return nil
	}
	return c.active(ctx, o.GetNamespace(), name)
}

func (c *migrations) active(ctx context.Context, namespace, instance string) []reconcile.Request {
	list, err := c.ofMachine(ctx, namespace, instance)
	if err != nil {
		return nil // the cache has no such index before it runs; then every migration is looked at anyway
	}
	var requests []reconcile.Request
	for _, m := range list {
		if !m.IsFinal() || len(m.Finalizers) > 0 {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&m)})
		}
	}
	return requests
}

func (c *migrations) ofMachine(ctx context.Context, namespace, instance string) ([]virtv1.VirtualMachineInstanceMigration, error) {
	var list virtv1.VirtualMachineInstanceMigrationList
	err := c.cached.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{migrationsOf: instance})
	return list.Items, err
}

// Reconcile steps one migration.
func (c *migrations) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	// From the API server itself: what was counted a moment ago must count now.
	m := &virtv1.VirtualMachineInstanceMigration{}
	found, err := get(ctx, c.live, req.NamespacedName, m)
	if err != nil || !found {
		return ctrl.Result{}, err
	}
	view, err := c.look(ctx, m)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := migrate.Step(view)
	actions, err := c.actions(ctx, view, d)
	if err != nil {
		return ctrl.Result{}, err
	}
	result, err := c.executor.decide(ctx, lifecycle.Decision{Actions: actions, After: d.After}, func(_ lifecycle.Action, err error) lifecycle.Decision {
		return lifecycle.Decision{Actions: []lifecycle.Action{
			lifecycle.Event{Object: m, Type: corev1.EventTypeWarning, Reason: "FailedCreate", Message: err.Error()},
		}}
	})
	if err == nil && migrate.Over(d.Migration) {
		err = c.collect(ctx, d.Migration)
	}
	return result, err
}

// look reads what is known of a migration.
func (c *migrations) look(ctx context.Context, m *virtv1.VirtualMachineInstanceMigration) (migrate.View, error) {
	v := migrate.View{Now: c.config.Now(), Migration: m}
	vmi := &virtv1.VirtualMachineInstance{}
	found, err := get(ctx, c.live, types.NamespacedName{Namespace: m.Namespace, Name: m.Spec.VMIName}, vmi)
	if err != nil {
		return v, fmt.Errorf("read virtual machine instance %s/%s: %w", m.Namespace, m.Spec.VMIName, err)
	}
	if found {
		v.VMI = vmi
		if err := c.addPods(ctx, &v); err != nil {
			return v, err
		}
	}
	if m.IsFinal() {
		return v, nil
	}
	if kv := c.config.Cluster(); kv != nil {
		v.Configuration = kv.Spec.Configuration.MigrationConfiguration
	}
	return v, c.lookAround(ctx, &v)
}

// addPods finds the pods at both ends.
func (c *migrations) addPods(ctx context.Context, v *migrate.View) error {
	view := lifecycle.VMIView{VMI: v.VMI}
	if err := c.instances.addPods(ctx, &view); err != nil {
		return err
	}
	v.Source = lifecycle.CurrentPod(v.VMI, view.Pods)
	target := launcherpod.Name(v.VMI, targetOf(v.Migration, v.VMI))
	for _, pod := range view.Pods {
		if pod.Name == target {
			v.Target = pod
		}
		if ms := v.VMI.Status.MigrationState; ms != nil && ms.MigrationUID == v.Migration.UID && pod.Name == ms.SourcePod {
			v.Source = pod
		}
	}
	return nil
}

func targetOf(m *virtv1.VirtualMachineInstanceMigration, vmi *virtv1.VirtualMachineInstance) *launcherpod.Migration {
	return &launcherpod.Migration{Name: m.Name, UID: m.UID, NodeSelector: m.Spec.AddedNodeSelector, SourceNode: vmi.Status.NodeName}
}

// lookAround reads what a migration that has not begun depends on.
func (c *migrations) lookAround(ctx context.Context, v *migrate.View) error {
	var all virtv1.VirtualMachineInstanceMigrationList
	if err := c.cached.List(ctx, &all); err != nil {
		return fmt.Errorf("list migrations: %w", err)
	}
	for _, m := range all.Items {
		if m.IsFinal() {
			if at, ok := failure(&m, v.Migration); ok {
				v.Failures = append(v.Failures, at)
			}
			continue
		}
		load := migrate.Load{
			UID: m.UID, VMI: types.NamespacedName{Namespace: m.Namespace, Name: m.Spec.VMIName}, Phase: m.Status.Phase,
			Priority: migrate.PriorityOf(&m), Created: m.CreationTimestamp.Time,
		}
		vmi := &virtv1.VirtualMachineInstance{}
		if found, err := get(ctx, c.cached, load.VMI, vmi); err == nil && found {
			load.Source = vmi.Status.NodeName
		}
		v.Others = append(v.Others, load)
	}
	var policies migrationsv1.MigrationPolicyList
	if err := c.cached.List(ctx, &policies); err != nil {
		return fmt.Errorf("list migration policies: %w", err)
	}
	v.Policies = policies.Items
	namespace := &corev1.Namespace{}
	if found, err := get(ctx, c.cached, types.NamespacedName{Name: v.Migration.Namespace}, namespace); err != nil {
		return fmt.Errorf("read namespace %s: %w", v.Migration.Namespace, err)
	} else if found {
		v.Namespace = namespace
	}
	return nil
}

// failure is when another automatic migration of the same machine failed.
func failure(m, of *virtv1.VirtualMachineInstanceMigration) (at time.Time, failed bool) {
	if m.Namespace != of.Namespace || m.Spec.VMIName != of.Spec.VMIName || m.Status.Phase != virtv1.MigrationFailed || !migrate.Automatic(m) {
		return time.Time{}, false
	}
	for _, t := range m.Status.PhaseTransitionTimestamps {
		if t.Phase == virtv1.MigrationFailed {
			return t.PhaseTransitionTimestamp.Time, true
		}
	}
	return time.Time{}, false
}

// actions are what a decision asks for, the target's pod first: what counts it as made must not be written without it.
func (c *migrations) actions(ctx context.Context, v migrate.View, d migrate.Decision) ([]lifecycle.Action, error) {
	var actions []lifecycle.Action
	if d.CreateTarget {
		pod, err := c.buildTarget(ctx, v)
		if err != nil {
			return nil, err
		}
		actions = append(actions, lifecycle.Create{Object: pod, Keep: true})
	}
	if d.DeleteTarget {
		actions = append(actions, lifecycle.Delete{Object: v.Target, GraceSeconds: new(int64(0))})
	}
	if d.VMI != nil {
		actions = append(actions, lifecycle.Patch{From: v.VMI, To: d.VMI})
	}
	if !equality.Semantic.DeepEqual(v.Migration.Status, d.Migration.Status) {
		actions = append(actions, lifecycle.Patch{From: v.Migration, To: d.Migration, Status: true})
	}
	if !equality.Semantic.DeepEqual(v.Migration.ObjectMeta, d.Migration.ObjectMeta) { // last: a finalizer may be its end
		actions = append(actions, lifecycle.Patch{From: v.Migration, To: d.Migration})
	}
	for _, e := range d.Events {
		actions = append(actions, lifecycle.Event{Object: v.Migration, Type: e.Type, Reason: e.Reason, Message: e.Message})
	}
	return actions, nil
}

// buildTarget makes the pod that the guest is to move to. What executes the guest cannot change while it runs.
func (c *migrations) buildTarget(ctx context.Context, v migrate.View) (*corev1.Pod, error) {
	networks, err := c.instances.networks(ctx, v.VMI)
	if err != nil {
		return nil, err
	}
	overlay, fault, err := c.instances.overlay(ctx, v.VMI)
	if err = errors.Join(err, fault); err != nil {
		return nil, err
	}
	existing, err := claimsOf(ctx, c.cached, v.VMI.Namespace, v.VMI.Spec.Volumes)
	if err != nil {
		return nil, err
	}
	claims := map[string]launcherpod.Claim{}
	for name, claim := range existing {
		claims[name] = launcherpod.Claim{Block: claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock}
	}
	r := launcherpod.Request{
		Cluster: c.config.settings().Launcher, VMI: v.VMI, Claims: claims, NetworkResources: networks, Overlay: overlay,
		Migration: targetOf(v.Migration, v.VMI),
	}
	pod, err := launcherpod.Build(r)
	if err != nil || v.Source == nil || qemu.AcceleratorOf(pod) == qemu.AcceleratorOf(v.Source) {
		return pod, err
	}
	r.KVM = qemu.AcceleratorOf(v.Source) == qemu.KVM
	return launcherpod.Build(r)
}

// finishedKept is how many migrations of a machine that are over are kept to be read.
const finishedKept = 5

// collect deletes the machine's oldest migrations that are over.
func (c *migrations) collect(ctx context.Context, m *virtv1.VirtualMachineInstanceMigration) error {
	list, err := c.ofMachine(ctx, m.Namespace, m.Spec.VMIName)
	if err != nil {
		return fmt.Errorf("list the migrations of %s/%s: %w", m.Namespace, m.Spec.VMIName, err)
	}
	list = slices.DeleteFunc(list, func(m virtv1.VirtualMachineInstanceMigration) bool { return !migrate.Over(&m) })
	slices.SortFunc(list, func(a, b virtv1.VirtualMachineInstanceMigration) int {
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	for n := finishedKept; n < len(list); n++ {
		if err := c.executor.delete(ctx, lifecycle.Delete{Object: &list[n]}); err != nil {
			return err
		}
	}
	return nil
}
