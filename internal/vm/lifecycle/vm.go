package lifecycle

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// VMView is what is known of a virtual machine at one moment.
type VMView struct {
	Now time.Time
	// Jitter is a random number in [0,1) that spreads the restarts of failing machines.
	Jitter   float64
	Settings Settings
	// VM is the machine; nil when only its instance is left.
	VM *virtv1.VirtualMachine
	// VMI is the instance of the machine's name; nil when there is none.
	VMI *virtv1.VirtualMachineInstance
	// Started is the specification that the instance was started with; nil when it is not known.
	Started *virtv1.VirtualMachineSpec
	// Claims are the existing persistent volume claims of the machine's volumes, by name.
	Claims map[string]*corev1.PersistentVolumeClaim
}

// vmStep collects what one step wants. vm and vmi are copies: what the objects are to be.
type vmStep struct {
	view    VMView
	vm      *virtv1.VirtualMachine
	vmi     *virtv1.VirtualMachineInstance
	actions []Action // between the patches of the objects and that of the status
	confirm bool
	after   time.Duration
}

// StepVM decides what happens next to a virtual machine.
func StepVM(v VMView) Decision {
	if v.VM == nil {
		return releaseOrphan(v.VMI)
	}
	s := &vmStep{view: v, vm: v.VM.DeepCopy(), vmi: v.VMI.DeepCopy()}
	if err := s.claimInstance(); err != nil {
		return s.failed(reasonFailedCreate, err)
	}
	if s.vm.DeletionTimestamp != nil {
		s.terminate()
		return s.decision()
	}
	if s.prepare() {
		return s.decision()
	}
	s.forgiveFailures()
	s.vm.Status.StateChangeRequests = pendingRequests(s.vm.Status.StateChangeRequests, s.vmi)
	s.countFailure()
	if err := s.followStrategy(); err != nil {
		return s.failed(reasonFailedCreate, err)
	}
	if err := s.updateLive(); err != nil {
		return s.failed(reasonFailedUpdate, err)
	}
	s.setStatus(nil)
	return s.decision()
}

// VMFailed tells the user that an action of a step could not be carried out.
func VMFailed(v VMView, a Action, err error) Decision {
	s := &vmStep{view: v, vm: v.VM.DeepCopy(), vmi: v.VMI.DeepCopy()}
	reason := reasonFailedUpdate
	switch a := a.(type) {
	case Create:
		reason = reasonFailedCreate
	case Delete:
		reason = reasonFailedDelete
	case Patch:
		if from, ok := a.From.(*virtv1.VirtualMachineInstance); ok {
			to := a.To.(*virtv1.VirtualMachineInstance)
			if !equality.Semantic.DeepEqual(from.Spec.Networks, to.Spec.Networks) {
				reason = reasonHotPlugFailed
			}
		}
	}
	return s.failed(reason, err)
}

// failed is the decision to do nothing but tell the user why.
func (s *vmStep) failed(reason string, err error) Decision {
	s.vm, s.vmi = s.view.VM.DeepCopy(), s.view.VMI.DeepCopy()
	s.confirm = false
	s.setStatus(&virtv1.VirtualMachineCondition{
		Type: virtv1.VirtualMachineFailure, Status: corev1.ConditionTrue, Reason: reason, Message: err.Error(),
	})
	s.actions = []Action{Event{Object: s.view.VM, Type: corev1.EventTypeWarning, Reason: reason, Message: err.Error()}}
	return s.decision()
}

// decision puts the actions in order. The status goes before deletions, because it counts what a deletion would let us forget,
// and after creations, because it says that they happened.
func (s *vmStep) decision() Decision {
	var actions []Action
	vm := s.view.VM.DeepCopy()
	if metaOrSpecDiffer(&vm.ObjectMeta, &s.vm.ObjectMeta, vm.Spec, s.vm.Spec) {
		to := vm.DeepCopy()
		to.Finalizers, to.Spec = s.vm.Finalizers, s.vm.Spec
		actions = append(actions, Patch{From: s.view.VM, To: to})
	}
	if s.view.VMI != nil && s.vmi != nil && !equality.Semantic.DeepEqual(s.view.VMI, s.vmi) {
		actions = append(actions, Patch{From: s.view.VMI, To: s.vmi})
	}
	var status []Action
	gone := len(s.vm.Finalizers) == 0 && s.vm.DeletionTimestamp != nil
	if !gone && !equality.Semantic.DeepEqual(s.view.VM.Status, s.vm.Status) {
		to := vm.DeepCopy()
		to.Status = s.vm.Status
		status = []Action{Patch{From: s.view.VM, To: to, Status: true}}
	}
	if creates(s.actions) {
		actions = append(append(actions, s.actions...), status...)
	} else {
		actions = append(append(actions, status...), s.actions...)
	}
	return Decision{Actions: actions, Confirm: s.confirm, After: s.after}
}

func metaOrSpecDiffer(a, b *metav1.ObjectMeta, aSpec, bSpec virtv1.VirtualMachineSpec) bool {
	return !slices.Equal(a.Finalizers, b.Finalizers) || !equality.Semantic.DeepEqual(aSpec, bSpec)
}

func creates(actions []Action) bool {
	return slices.ContainsFunc(actions, func(a Action) bool { _, ok := a.(Create); return ok })
}

// claimInstance makes sure that the instance is the machine's own: one without owner is adopted, one of another owner is an error.
func (s *vmStep) claimInstance() error {
	if s.vmi == nil || metav1.IsControlledBy(s.vmi, s.vm) {
		return nil
	}
	if owner := metav1.GetControllerOf(s.vmi); owner != nil && owner.UID != s.vm.UID {
		s.view.VMI, s.vmi = nil, nil
		return fmt.Errorf("virtual machine instance %s belongs to %s %s; delete it, or give the virtual machine another name",
			s.vm.Name, owner.Kind, owner.Name)
	}
	if s.vm.DeletionTimestamp != nil || s.vmi.DeletionTimestamp != nil {
		return nil
	}
	s.vmi.OwnerReferences = append(s.vmi.OwnerReferences, *metav1.NewControllerRef(s.vm, virtv1.VirtualMachineGroupVersionKind))
	s.vmi.Finalizers = withFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineControllerFinalizer)
	return nil
}

// releaseOrphan lets an instance go whose machine does not exist any more.
func releaseOrphan(vmi *virtv1.VirtualMachineInstance) Decision {
	if vmi == nil || vmi.DeletionTimestamp == nil || !vmi.IsFinal() || !hasFinalizer(vmi.Finalizers, virtv1.VirtualMachineControllerFinalizer) {
		return Decision{}
	}
	to := vmi.DeepCopy()
	to.Finalizers = withoutFinalizer(to.Finalizers, virtv1.VirtualMachineControllerFinalizer)
	return Decision{Actions: []Action{Patch{From: vmi, To: to}}, Confirm: true}
}

// terminate ends the instance and then lets the machine go. With --cascade=orphan the instance is left running.
func (s *vmStep) terminate() {
	orphan := slices.Contains(s.vm.Finalizers, metav1.FinalizerOrphanDependents)
	switch {
	case s.vmi == nil:
		s.release()
	case orphan:
		s.vmi.Finalizers = withoutFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineControllerFinalizer)
		s.release()
	case s.vmi.DeletionTimestamp == nil:
		s.stop()
	default:
		s.releaseInstance()
	}
	s.setStatus(nil)
}

func (s *vmStep) release() {
	if hasFinalizer(s.vm.Finalizers, virtv1.VirtualMachineControllerFinalizer) {
		s.vm.Finalizers = withoutFinalizer(s.vm.Finalizers, virtv1.VirtualMachineControllerFinalizer)
		s.confirm = true
	}
}

// releaseInstance lets an instance go that has ended, now that its end has been counted.
func (s *vmStep) releaseInstance() {
	if s.vmi.IsFinal() {
		s.vmi.Finalizers = withoutFinalizer(s.vmi.Finalizers, virtv1.VirtualMachineControllerFinalizer)
	}
}

// prepare brings the machine's own object into shape. It reports whether the specification changed: then its generation does
// too, and nothing is started before the new one is seen.
func (s *vmStep) prepare() (changed bool) {
	s.vm.Finalizers = withFinalizer(s.vm.Finalizers, virtv1.VirtualMachineControllerFinalizer)
	if s.vm.Spec.Template == nil {
		return true
	}
	addFirmwareUUID(s.vm)
	purgeAbsent(s.vm, s.vmi)
	if strategy, _ := s.vm.RunStrategy(); strategy == virtv1.RunStrategyHalted && s.vmi == nil && hasStart(s.vm.Status.StateChangeRequests) {
		runAlways(&s.vm.Spec) // "start --paused" of a halted machine
	}
	return !equality.Semantic.DeepEqual(s.view.VM.Spec, s.vm.Spec)
}

func runAlways(spec *virtv1.VirtualMachineSpec) {
	if spec.Running != nil {
		spec.Running = new(true)
		return
	}
	spec.RunStrategy = new(virtv1.RunStrategyAlways)
}

// followStrategy starts or stops the machine as its run strategy says.
func (s *vmStep) followStrategy() error {
	strategy, err := s.vm.RunStrategy()
	if err != nil {
		return err
	}
	switch {
	case s.vmi == nil:
		if s.wantsStart(strategy) {
			return s.start(strategy)
		}
	case s.vmi.DeletionTimestamp != nil:
		s.releaseInstance()
		return nil // what comes next is decided when it is gone
	case s.wantsStop(strategy):
		s.stop()
		return nil
	}
	s.vm.Status.RunStrategy = strategy
	return nil
}

func (s *vmStep) wantsStart(strategy virtv1.VirtualMachineRunStrategy) bool {
	switch strategy {
	case virtv1.RunStrategyAlways:
		return true
	case virtv1.RunStrategyManual:
		return hasStart(s.vm.Status.StateChangeRequests)
	case virtv1.RunStrategyRerunOnFailure, virtv1.RunStrategyOnce:
		return s.vm.Status.RunStrategy != strategy || hasStart(s.vm.Status.StateChangeRequests)
	}
	return false
}

func (s *vmStep) wantsStop(strategy virtv1.VirtualMachineRunStrategy) bool {
	requests := s.vm.Status.StateChangeRequests
	if strategy == virtv1.RunStrategyHalted || (len(requests) > 0 && stops(requests[0], s.vmi)) {
		return true
	}
	if !s.vmi.IsFinal() {
		return false
	}
	if strategy == virtv1.RunStrategyRerunOnFailure && s.vmi.Status.Phase == virtv1.Failed && !hasStart(requests) {
		// The instance is all that says "failed": before it goes, the machine itself says that it is to be started again.
		s.vm.Status.StateChangeRequests = append(requests, ownStart())
	}
	return strategy == virtv1.RunStrategyAlways || hasStart(s.vm.Status.StateChangeRequests)
}

func (s *vmStep) stop() {
	s.actions = append(s.actions, Delete{Object: s.view.VMI}, Event{
		Object: s.view.VM, Type: corev1.EventTypeNormal, Reason: reasonDeleted,
		Message: "Stopped the virtual machine by deleting the virtual machine instance " + s.vmi.Name,
	})
	s.vmi.DeletionTimestamp = &metav1.Time{Time: s.view.Now}
	s.view.VMI = s.vmi.DeepCopy() // the deletion is no patch
}

// start makes the instance, unless earlier starts failed too lately.
func (s *vmStep) start(strategy virtv1.VirtualMachineRunStrategy) error {
	if f := s.vm.Status.StartFailure; f != nil && f.RetryAfterTimestamp != nil && s.view.Now.Before(f.RetryAfterTimestamp.Time) {
		s.after = sooner(s.after, f.RetryAfterTimestamp.Sub(s.view.Now))
		return nil
	}
	revision, err := newRevision(s.vm)
	if err != nil {
		return err
	}
	vmi, err := newInstance(s.view.Settings, s.vm, startsPaused(s.vm.Status.StateChangeRequests))
	if err != nil {
		return err
	}
	s.actions = append(s.actions, Create{Object: revision, Keep: true})
	if g := s.vm.Status.ObservedGeneration; g != 0 && g != s.vm.Generation { // the revision of the last start
		old := revision.DeepCopy()
		old.Name, old.Revision, old.Data.Raw = RevisionName(s.vm.UID, g), g, nil
		s.actions = append(s.actions, Delete{Object: old})
	}
	s.actions = append(s.actions, Create{Object: vmi}, Event{
		Object: s.view.VM, Type: corev1.EventTypeNormal, Reason: reasonCreated,
		Message: "Started the virtual machine by creating the new virtual machine instance " + vmi.Name,
	})
	s.confirm = true
	s.vmi = vmi
	removeVMConditions(&s.vm.Status, func(t virtv1.VirtualMachineConditionType) bool { return t == virtv1.VirtualMachineRestartRequired })
	s.vm.Status.RunStrategy = strategy
	s.vm.Status.StateChangeRequests = pendingRequests(s.vm.Status.StateChangeRequests, vmi)
	return nil
}

func hasFinalizer(list []string, f string) bool { return slices.Contains(list, f) }

func withFinalizer(list []string, f string) []string {
	if slices.Contains(list, f) {
		return list
	}
	return append(slices.Clone(list), f)
}

func withoutFinalizer(list []string, f string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == f })
}
