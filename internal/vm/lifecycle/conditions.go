package lifecycle

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

func vmiCondition(vmi *virtv1.VirtualMachineInstance, t virtv1.VirtualMachineInstanceConditionType) *virtv1.VirtualMachineInstanceCondition {
	if vmi == nil {
		return nil
	}
	i := slices.IndexFunc(vmi.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &vmi.Status.Conditions[i]
}

func vmiConditionIs(vmi *virtv1.VirtualMachineInstance, t virtv1.VirtualMachineInstanceConditionType, s corev1.ConditionStatus) bool {
	c := vmiCondition(vmi, t)
	return c != nil && c.Status == s
}

// setVMICondition sets a condition; the time of its transition moves only with its status.
func setVMICondition(vmi *virtv1.VirtualMachineInstance, now metav1.Time, c virtv1.VirtualMachineInstanceCondition) {
	c.LastTransitionTime = now
	old := vmiCondition(vmi, c.Type)
	if old == nil {
		vmi.Status.Conditions = append(vmi.Status.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	c.LastProbeTime = old.LastProbeTime
	*old = c
}

func removeVMICondition(vmi *virtv1.VirtualMachineInstance, t virtv1.VirtualMachineInstanceConditionType) {
	vmi.Status.Conditions = slices.DeleteFunc(vmi.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool { return c.Type == t })
}

func vmCondition(s *virtv1.VirtualMachineStatus, t virtv1.VirtualMachineConditionType) *virtv1.VirtualMachineCondition {
	i := slices.IndexFunc(s.Conditions, func(c virtv1.VirtualMachineCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &s.Conditions[i]
}

func setVMCondition(s *virtv1.VirtualMachineStatus, now metav1.Time, c virtv1.VirtualMachineCondition) {
	if c.LastTransitionTime.IsZero() {
		c.LastTransitionTime = now
	}
	old := vmCondition(s, c.Type)
	if old == nil {
		s.Conditions = append(s.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	*old = c
}

func removeVMConditions(s *virtv1.VirtualMachineStatus, drop func(virtv1.VirtualMachineConditionType) bool) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c virtv1.VirtualMachineCondition) bool { return drop(c.Type) })
}

func podCondition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &pod.Status.Conditions[i]
}
