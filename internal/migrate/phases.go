package migrate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// Reasons of events about migrations.
const (
	reasonFailed    = "FailedMigration"
	reasonSucceeded = "SuccessfulMigration"
)

// phases are the steps of a migration in order. Those who watch see each of them: none is skipped.
var phases = []virtv1.VirtualMachineInstanceMigrationPhase{
	virtv1.MigrationPhaseUnset, virtv1.MigrationPending, virtv1.MigrationScheduling, virtv1.MigrationScheduled,
	virtv1.MigrationPreparingTarget, virtv1.MigrationTargetReady, virtv1.MigrationRunning,
}

func order(p virtv1.VirtualMachineInstanceMigrationPhase) int { return slices.Index(phases, p) }

// next is the phase after one, on the way to another.
func next(from, to virtv1.VirtualMachineInstanceMigrationPhase) virtv1.VirtualMachineInstanceMigrationPhase {
	if order(from) >= order(to) {
		return to
	}
	return phases[order(from)+1]
}

func over(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// ready says that a guest can be received in a pod: its launcher runs.
func ready(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodRunning || pod.Spec.NodeName == "" || pod.DeletionTimestamp != nil || len(pod.Status.ContainerStatuses) == 0 {
		return false
	}
	return !slices.ContainsFunc(pod.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Running == nil })
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// why is what a pod says of its end, to be put behind a sentence.
func why(pod *corev1.Pod) string {
	if pod == nil {
		return ""
	}
	if pod.Status.Message != "" {
		return ": " + pod.Status.Message
	}
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.Message != "" {
			return ": " + t.Message
		}
	}
	return ""
}

func liveMigratable(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstanceCondition {
	for i := range vmi.Status.Conditions {
		if vmi.Status.Conditions[i].Type == virtv1.VirtualMachineInstanceIsMigratable {
			return &vmi.Status.Conditions[i]
		}
	}
	return nil
}

func migratable(vmi *virtv1.VirtualMachineInstance) bool {
	c := liveMigratable(vmi)
	return c == nil || c.Status != corev1.ConditionFalse
}

func notMigratable(vmi *virtv1.VirtualMachineInstance) string {
	if c := liveMigratable(vmi); c != nil {
		return c.Message
	}
	return ""
}

// Over says that a migration has ended and that nothing is left to do for it.
func Over(m *virtv1.VirtualMachineInstanceMigration) bool {
	return m.IsFinal() && len(m.Finalizers) == 0
}
