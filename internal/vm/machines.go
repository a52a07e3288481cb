package vm

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"patchbay/internal/vm/lifecycle"
)

// revisionsKept is how many start specifications are kept at hand. They never change, and only those of edited machines are read.
const revisionsKept = 1024

// machines steps virtual machines.
type machines struct {
	cached    client.Client
	live      reader
	executor  executor
	config    Config
	revisions *lru.Cache // by name
}

func newMachines(cached client.Client, live reader, e executor, config Config) *machines {
	return &machines{cached: cached, live: live, executor: e, config: config, revisions: lru.New(revisionsKept)}
}

func (m *machines) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("virtualmachine").
		For(&virtv1.VirtualMachine{}).
		Watches(&virtv1.VirtualMachineInstance{}, handler.EnqueueRequestsFromMapFunc(ofSameName)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(instancesOf(m.cached, instancesByClaim))).
		WithOptions(m.config.options()).
		Complete(m)
}

// Reconcile steps one machine.
func (m *machines) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	view, err := m.look(ctx, m.cached, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	decision := lifecycle.StepVM(view)
	if decision.Confirm {
		if view, err = m.look(ctx, m.live, req.NamespacedName); err != nil {
			return ctrl.Result{}, err
		}
		decision = lifecycle.StepVM(view)
	}
	return m.executor.decide(ctx, decision, func(a lifecycle.Action, err error) lifecycle.Decision {
		if view.VM == nil {
			return lifecycle.Decision{}
		}
		return lifecycle.VMFailed(view, a, err)
	})
}

// look reads what is known of a machine.
func (m *machines) look(ctx context.Context, r reader, key types.NamespacedName) (lifecycle.VMView, error) {
	view := lifecycle.VMView{Now: m.config.Now(), Jitter: m.config.Jitter(), Settings: m.config.settings()}
	vm, vmi := &virtv1.VirtualMachine{}, &virtv1.VirtualMachineInstance{}
	found, err := get(ctx, r, key, vm)
	if err != nil {
		return view, fmt.Errorf("read virtual machine %s: %w", key, err)
	}
	if found {
		view.VM = vm
	}
	if found, err = get(ctx, r, key, vmi); err != nil {
		return view, fmt.Errorf("read virtual machine instance %s: %w", key, err)
	}
	if !found {
		return view, nil
	}
	view.VMI = vmi
	if view.Claims, err = claimsOf(ctx, m.cached, key.Namespace, vmi.Spec.Volumes); err != nil {
		return view, fmt.Errorf("read claims of %s: %w", key, err)
	}
	if view.VM != nil && view.VM.Spec.Template != nil && !vmi.IsFinal() {
		view.Started, err = m.startSpec(ctx, vm, vmi)
	}
	return view, err
}

// startSpec is the specification that the instance was started with; nil when nobody knows.
func (m *machines) startSpec(ctx context.Context, vm *virtv1.VirtualMachine, vmi *virtv1.VirtualMachineInstance) (*virtv1.VirtualMachineSpec, error) {
	name := vmi.Status.VirtualMachineRevisionName
	switch name {
	case "":
		return nil, nil
	case lifecycle.RevisionName(vm.UID, vm.Generation):
		return &vm.Spec, nil // not edited since
	}
	if spec, ok := m.revisions.Get(name); ok {
		return spec.(*virtv1.VirtualMachineSpec), nil
	}
	revision := &appsv1.ControllerRevision{}
	found, err := get(ctx, m.live, types.NamespacedName{Namespace: vm.Namespace, Name: name}, revision)
	if err != nil || !found {
		return nil, err
	}
	spec, err := lifecycle.StartSpec(revision)
	if err != nil {
		return nil, err
	}
	m.revisions.Add(name, spec)
	return spec, nil
}
