package lifecycle

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/vm/launcherpod"
)

// setConditions takes over the conditions that follow from the pod.
func (s *vmiStep) setConditions() {
	now := metav1.NewTime(s.view.Now)
	setVMICondition(s.vmi, now, s.ready())
	s.mirrorScheduling(now)
	if s.pod == nil {
		return
	}
	if reason, message := imageFault(s.pod); reason != "" && !s.vmi.IsFinal() {
		s.fault(reason, message)
	} else {
		s.clearFailure(reasonErrImagePull, reasonImagePullBackOff)
	}
}

// ready mirrors the pod's readiness, as far as there is a guest that could be ready.
func (s *vmiStep) ready() virtv1.VirtualMachineInstanceCondition {
	c := virtv1.VirtualMachineInstanceCondition{Type: virtv1.VirtualMachineInstanceReady, Status: corev1.ConditionFalse}
	switch {
	case s.pod == nil:
		c.Reason, c.Message = virtv1.PodNotExistsReason, textNoPod
	case s.pod.DeletionTimestamp != nil:
		c.Reason, c.Message = virtv1.PodTerminatingReason, textPodTerminating
	case !s.vmi.IsRunning():
		c.Reason, c.Message = virtv1.GuestNotRunningReason, textGuestNotRunning
	default:
		p := podCondition(s.pod, corev1.PodReady)
		if p == nil {
			c.Reason, c.Message = virtv1.PodConditionMissingReason, textNoPodCondition
			break
		}
		c.Status, c.Reason, c.Message = p.Status, p.Reason, p.Message
	}
	return c
}

// mirrorScheduling shows that the scheduler found no node, as long as that is so.
func (s *vmiStep) mirrorScheduling(now metav1.Time) {
	const scheduled = virtv1.VirtualMachineInstanceConditionType(corev1.PodScheduled)
	if s.pod != nil {
		if c := podCondition(s.pod, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse {
			setVMICondition(s.vmi, now, virtv1.VirtualMachineInstanceCondition{
				Type: scheduled, Status: c.Status, Reason: c.Reason, Message: c.Message,
			})
			return
		}
	}
	removeVMICondition(s.vmi, scheduled)
}

// fault says in the condition Synchronized what keeps the instance from starting.
func (s *vmiStep) fault(reason, message string) {
	setVMICondition(s.vmi, metav1.NewTime(s.view.Now), virtv1.VirtualMachineInstanceCondition{
		Type: virtv1.VirtualMachineInstanceSynchronized, Status: corev1.ConditionFalse, Reason: reason, Message: message,
	})
}

// clearFailure takes a fault back that is over. Others write Synchronized too: what they say stays.
func (s *vmiStep) clearFailure(reasons ...string) {
	c := vmiCondition(s.vmi, virtv1.VirtualMachineInstanceSynchronized)
	if c != nil && c.Status == corev1.ConditionFalse && slices.Contains(reasons, c.Reason) {
		removeVMICondition(s.vmi, virtv1.VirtualMachineInstanceSynchronized)
	}
}

// volumeStatus lists every volume and, for those on claims, what the node's agent must know of the claim.
func volumeStatus(vmi *virtv1.VirtualMachineInstance, claims map[string]*corev1.PersistentVolumeClaim) []virtv1.VolumeStatus {
	var list []virtv1.VolumeStatus
	for _, v := range vmi.Spec.Volumes {
		status := virtv1.VolumeStatus{Name: v.Name}
		if i := slices.IndexFunc(vmi.Status.VolumeStatus, func(old virtv1.VolumeStatus) bool { return old.Name == v.Name }); i >= 0 {
			status = vmi.Status.VolumeStatus[i]
		}
		if claim := claims[launcherpod.ClaimName(v)]; claim != nil {
			status.PersistentVolumeClaimInfo = &virtv1.PersistentVolumeClaimInfo{
				ClaimName:   claim.Name,
				AccessModes: claim.Spec.AccessModes,
				VolumeMode:  claim.Spec.VolumeMode,
				Capacity:    claim.Status.Capacity,
				Requests:    claim.Spec.Resources.Requests,
			}
		}
		list = append(list, status)
	}
	return list
}
