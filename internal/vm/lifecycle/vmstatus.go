package lifecycle

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/vm/launcherpod"
)

// setStatus says in the machine's status what it is to be after this step. failure is nil when the step can be carried out.
func (s *vmStep) setStatus(failure *virtv1.VirtualMachineCondition) {
	status := &s.vm.Status
	status.Created = s.vmi != nil
	status.Ready = vmiConditionIs(s.vmi, virtv1.VirtualMachineInstanceReady, corev1.ConditionTrue)
	status.DesiredGeneration = s.vm.Generation
	if s.vmi != nil && s.vmi.DeletionTimestamp == nil {
		if g, err := strconv.ParseInt(s.vmi.Annotations[virtv1.VirtualMachineGenerationAnnotation], 10, 64); err == nil {
			status.ObservedGeneration = g
		}
	}
	s.setConditions(failure)
	status.PrintableStatus = s.printable()
}

func (s *vmStep) setConditions(failure *virtv1.VirtualMachineCondition) {
	status, now := &s.vm.Status, metav1.NewTime(s.view.Now)
	if s.vmi == nil {
		setVMCondition(status, now, virtv1.VirtualMachineCondition{
			Type: virtv1.VirtualMachineReady, Status: corev1.ConditionFalse, Reason: reasonNoInstance, Message: textNoInstance,
		})
	}
	s.copyConditions()
	if failure == nil {
		failure = unsynchronized(s.vmi)
	}
	if failure == nil {
		removeVMConditions(status, func(t virtv1.VirtualMachineConditionType) bool { return t == virtv1.VirtualMachineFailure })
		return
	}
	setVMCondition(status, now, *failure)
}

// copyConditions shows the instance's conditions on the machine.
func (s *vmStep) copyConditions() {
	copied := map[virtv1.VirtualMachineConditionType]bool{
		virtv1.VirtualMachineReady:                  true,
		virtv1.VirtualMachineFailure:                true,
		virtv1.VirtualMachineRestartRequired:        s.vmi != nil,
		virtv1.VirtualMachineManualRecoveryRequired: true,
	}
	if s.vmi != nil {
		for _, c := range s.vmi.Status.Conditions {
			if c.Type == virtv1.VirtualMachineInstanceSynchronized {
				continue
			}
			t := virtv1.VirtualMachineConditionType(c.Type)
			copied[t] = true
			setVMCondition(&s.vm.Status, metav1.NewTime(s.view.Now), virtv1.VirtualMachineCondition{
				Type: t, Status: c.Status, Reason: c.Reason, Message: c.Message,
				LastProbeTime: c.LastProbeTime, LastTransitionTime: c.LastTransitionTime,
			})
		}
	}
	removeVMConditions(&s.vm.Status, func(t virtv1.VirtualMachineConditionType) bool { return !copied[t] })
}

// unsynchronized is the failure that the instance reports, as the machine's.
func unsynchronized(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineCondition {
	c := vmiCondition(vmi, virtv1.VirtualMachineInstanceSynchronized)
	if c == nil || c.Status != corev1.ConditionFalse {
		return nil
	}
	return &virtv1.VirtualMachineCondition{
		Type: virtv1.VirtualMachineFailure, Status: corev1.ConditionTrue, Reason: c.Reason, Message: c.Message,
	}
}

// printable is the machine's state in one word: the first line that holds.
func (s *vmStep) printable() virtv1.VirtualMachinePrintableStatus {
	for _, line := range printableStatuses {
		if line.holds(s) {
			return line.status
		}
	}
	return virtv1.VirtualMachineStatusUnknown
}

var printableStatuses = []struct {
	status virtv1.VirtualMachinePrintableStatus
	holds  func(*vmStep) bool
}{
	{virtv1.VirtualMachineStatusTerminating, func(s *vmStep) bool { return s.vm.DeletionTimestamp != nil }},
	{virtv1.VirtualMachineStatusStopping, (*vmStep).isStopping},
	{virtv1.VirtualMachineStatusMigrating, func(s *vmStep) bool { return isMigrating(s.vmi) }},
	{virtv1.VirtualMachineStatusPaused, func(s *vmStep) bool {
		return vmiConditionIs(s.vmi, virtv1.VirtualMachineInstancePaused, corev1.ConditionTrue)
	}},
	{virtv1.VirtualMachineStatusRunning, func(s *vmStep) bool { return s.vmi != nil && s.vmi.IsRunning() }},
	{virtv1.VirtualMachineStatusPvcNotFound, unsynchronizedBy(reasonClaimNotFound)},
	{virtv1.VirtualMachineStatusDataVolumeError, unsynchronizedBy("FailedDataVolumeImport")},
	{virtv1.VirtualMachineStatusUnschedulable, (*vmStep).isUnschedulable},
	{virtv1.VirtualMachineStatusProvisioning, func(s *vmStep) bool {
		return vmiConditionIs(s.vmi, virtv1.VirtualMachineInstanceProvisioning, corev1.ConditionTrue)
	}},
	{virtv1.VirtualMachineStatusWaitingForVolumeBinding, (*vmStep).waitsForBinding},
	{virtv1.VirtualMachineStatusErrImagePull, unsynchronizedBy(reasonErrImagePull)},
	{virtv1.VirtualMachineStatusImagePullBackOff, unsynchronizedBy(reasonImagePullBackOff)},
	{virtv1.VirtualMachineStatusStarting, func(s *vmStep) bool {
		return s.vmi != nil && (s.vmi.IsUnprocessed() || s.vmi.IsScheduling() || s.vmi.IsScheduled())
	}},
	{virtv1.VirtualMachineStatusCrashLoopBackOff, (*vmStep).isBackingOff},
	{virtv1.VirtualMachineStatusStopped, func(s *vmStep) bool {
		return (s.vmi == nil && !s.waitsForReceiver()) || (s.vmi != nil && s.vmi.IsFinal())
	}},
	{virtv1.VirtualMachineStatusWaitingForReceiver, func(s *vmStep) bool { return s.vmi == nil && s.waitsForReceiver() }},
}

func (s *vmStep) isStopping() bool {
	if s.vmi == nil {
		return false
	}
	requests := s.vm.Status.StateChangeRequests
	return s.vmi.DeletionTimestamp != nil || (len(requests) > 0 && stops(requests[0], s.vmi))
}

func isMigrating(vmi *virtv1.VirtualMachineInstance) bool {
	return vmi != nil && vmi.Status.MigrationState != nil && !vmi.Status.MigrationState.Completed && !vmi.Status.MigrationState.Failed
}

func (s *vmStep) isUnschedulable() bool {
	c := vmiCondition(s.vmi, virtv1.VirtualMachineInstanceConditionType(corev1.PodScheduled))
	return c != nil && c.Status == corev1.ConditionFalse && c.Reason == reasonUnschedulable
}

func unsynchronizedBy(reason string) func(*vmStep) bool {
	return func(s *vmStep) bool {
		c := vmiCondition(s.vmi, virtv1.VirtualMachineInstanceSynchronized)
		return c != nil && c.Status == corev1.ConditionFalse && c.Reason == reason
	}
}

func (s *vmStep) waitsForBinding() bool {
	if s.vmi == nil || s.vmi.IsFinal() {
		return false
	}
	for _, v := range s.vmi.Spec.Volumes {
		claim, ok := s.view.Claims[launcherpod.ClaimName(v)]
		if ok && claim.Status.Phase != corev1.ClaimBound {
			return true
		}
	}
	return false
}

func (s *vmStep) isBackingOff() bool {
	return (s.vmi == nil || s.vmi.IsFinal()) && s.vm.Status.StartFailure != nil && s.vm.Status.StartFailure.ConsecutiveFailCount > 0
}

func (s *vmStep) waitsForReceiver() bool {
	strategy, err := s.vm.RunStrategy()
	return err == nil && strategy == virtv1.RunStrategyWaitAsReceiver
}
