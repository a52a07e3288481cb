package vm

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"patchbay/internal/migrate"
	"patchbay/internal/vm/lifecycle"
)

// evacuations migrates machines away from nodes that are to be emptied.
type evacuations struct {
	cached     client.Client
	live       reader
	executor   executor
	config     Config
	migrations *migrations
}

// defaultDrainTaint asks for a node's evacuation, besides evictions.
const defaultDrainTaint = "kubevirt.io/drain"

func (c *evacuations) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("evacuation").
		For(&virtv1.VirtualMachineInstance{}).
		Watches(&virtv1.VirtualMachineInstanceMigration{}, handler.EnqueueRequestsFromMapFunc(ofMigration)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(instancesOf(c.cached, instancesByNode)), builder.WithPredicates(taintChanges)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1, RateLimiter: c.config.options().RateLimiter}).
		Complete(c)
}

// taintChanges lets a node through when its taints change.
var taintChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return !slices.Equal(taints(e.ObjectOld), taints(e.ObjectNew))
}}

func taints(o client.Object) []string {
	var keys []string
	for _, t := range o.(*corev1.Node).Spec.Taints {
		keys = append(keys, t.Key)
	}
	return keys
}

func ofMigration(_ context.Context, o client.Object) []ctrl.Request {
	name := o.(*virtv1.VirtualMachineInstanceMigration).Spec.VMIName
	return []ctrl.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

// Reconcile looks at one instance.
func (c *evacuations) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	step, _, err := c.decide(ctx, c.cached, req.NamespacedName)
	if err != nil || step.VMI == nil && step.Create == nil {
		return ctrl.Result{}, err
	}
	// What is made once is decided on what the API server has.
	step, vmi, err := c.decide(ctx, c.live, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	var actions []lifecycle.Action
	if step.VMI != nil {
		actions = append(actions, lifecycle.Patch{From: vmi, To: step.VMI})
	}
	if step.Create != nil {
		actions = append(actions, lifecycle.Create{Object: step.Create})
	}
	return c.executor.decide(ctx, lifecycle.Decision{Actions: actions}, func(_ lifecycle.Action, err error) lifecycle.Decision {
		return lifecycle.Decision{Actions: []lifecycle.Action{
			lifecycle.Event{Object: vmi, Type: corev1.EventTypeWarning, Reason: "FailedCreate", Message: err.Error()},
		}}
	})
}

func (c *evacuations) decide(ctx context.Context, r reader, key types.NamespacedName) (migrate.EvacuationStep, *virtv1.VirtualMachineInstance, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	found, err := get(ctx, r, key, vmi)
	if err != nil || !found {
		return migrate.EvacuationStep{}, nil, err
	}
	e := migrate.Evacuation{Now: c.config.Now(), VMI: vmi}
	drain := defaultDrainTaint
	if kv := c.config.Cluster(); kv != nil {
		e.Default = kv.Spec.Configuration.EvictionStrategy
		if m := kv.Spec.Configuration.MigrationConfiguration; m != nil && m.NodeDrainTaintKey != nil {
			drain = *m.NodeDrainTaintKey
		}
	}
	node, err := c.migrations.instances.node(ctx, vmi.Status.NodeName)
	if err != nil {
		return migrate.EvacuationStep{}, nil, err
	}
	e.Drained = node != nil && slices.Contains(taints(node), drain)
	var all virtv1.VirtualMachineInstanceMigrationList
	if err := r.List(ctx, &all, client.InNamespace(key.Namespace)); err != nil {
		return migrate.EvacuationStep{}, nil, fmt.Errorf("list migrations: %w", err)
	}
	e.Active = slices.ContainsFunc(all.Items, func(m virtv1.VirtualMachineInstanceMigration) bool {
		return m.Spec.VMIName == key.Name && !m.IsFinal()
	})
	return migrate.Evacuate(e), vmi, nil
}

// Evictions answers for machines' pods.
type Evictions struct {
	Client client.Client // that reads and writes the API server itself
	Config Config
}

// Evict says why a pod may not be evicted now, or nothing when it may. A dry run changes nothing. by is who asks for it.
func (e Evictions) Evict(ctx context.Context, key types.NamespacedName, by string, dryRun bool) (refusal string, err error) {
	pod := &corev1.Pod{}
	found, err := get(ctx, e.Client, key, pod)
	if err != nil || !found {
		return "", err
	}
	name := pod.Annotations[virtv1.DomainAnnotation]
	if name == "" {
		return "", nil
	}
	e.Config.complete()
	eviction, vmi := migrate.Eviction{Pod: pod}, &virtv1.VirtualMachineInstance{}
	if found, err = get(ctx, e.Client, types.NamespacedName{Namespace: key.Namespace, Name: name}, vmi); err != nil {
		return "", err
	}
	if found && string(vmi.UID) == pod.Labels[virtv1.CreatedByLabel] {
		eviction.VMI = vmi
	}
	if kv := e.Config.Cluster(); kv != nil {
		eviction.Default = kv.Spec.Configuration.EvictionStrategy
	}
	verdict := migrate.Evict(eviction)
	if verdict.Evacuate && !dryRun {
		to := vmi.DeepCopy()
		migrate.MarkEvacuation(to, pod.Spec.NodeName, migrate.SourceOf(by), e.Config.Now())
		if err := e.Client.Patch(ctx, to, client.MergeFromWithOptions(vmi, client.MergeFromWithOptimisticLock{})); err != nil {
			return "", fmt.Errorf("mark %s/%s for evacuation: %w", vmi.Namespace, vmi.Name, err)
		}
	}
	return verdict.Refusal, nil
}
