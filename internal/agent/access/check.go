package access

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
)

// The checks and their texts are those that clients of the subresource API know (spec: KubeVirt subresources).

func conflict(vmi *virtv1.VirtualMachineInstance, text string) error {
	return apierrors.NewConflict(resource, vmi.Name, errors.New(text))
}

func checkRunning(vmi *virtv1.VirtualMachineInstance) error {
	if vmi.Status.Phase != virtv1.Running {
		return conflict(vmi, "VMI is not running")
	}
	return nil
}

// checkStream is for what needs the machine's devices, whether it is paused or not.
func checkStream(vmi *virtv1.VirtualMachineInstance) error {
	switch vmi.Status.Phase {
	case virtv1.Running:
		return nil
	case virtv1.Failed:
		return conflict(vmi, "VMI is in failed status")
	default:
		return apierrors.NewBadRequest("VMI is not running")
	}
}

func checkConsole(vmi *virtv1.VirtualMachineInstance) error {
	if no(vmi.Spec.Domain.Devices.AutoattachSerialConsole) {
		return apierrors.NewBadRequest("No serial consoles are present.")
	}
	return checkStream(vmi)
}

func checkScreen(vmi *virtv1.VirtualMachineInstance) error {
	if no(vmi.Spec.Domain.Devices.AutoattachGraphicsDevice) {
		return apierrors.NewBadRequest("No graphics devices are present.")
	}
	return checkStream(vmi)
}

func checkPortForward(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkStream(vmi); err != nil {
		return err
	}
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return conflict(vmi, "VMI is paused")
	}
	if len(vmi.Spec.Domain.Devices.Interfaces) == 0 {
		return apierrors.NewBadRequest("no network interfaces are present")
	}
	return nil
}

func checkPause(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if probe := vmi.Spec.LivenessProbe; probe != nil && probe.GuestAgentPing == nil {
		//lint:ignore ST1005 clients know the text
		return apierrors.NewForbidden(resource, vmi.Name, errors.New("Pausing VMIs with a non-GuestAgentPing LivenessProbe is not supported"))
	}
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return conflict(vmi, "VMI is already paused")
	}
	return nil
}

func checkUnpause(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if !has(vmi, virtv1.VirtualMachineInstancePaused) {
		return conflict(vmi, "VMI is not paused")
	}
	return nil
}

func checkSoftReboot(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return conflict(vmi, "VMI is paused")
	}
	if !has(vmi, virtv1.VirtualMachineInstanceAgentConnected) && !hasACPI(vmi) {
		return conflict(vmi, "VMI neither have the agent connected nor the ACPI feature enabled")
	}
	return nil
}

func hasACPI(vmi *virtv1.VirtualMachineInstance) bool {
	features := vmi.Spec.Domain.Features
	return features == nil || !no(features.ACPI.Enabled)
}

func has(vmi *virtv1.VirtualMachineInstance, kind virtv1.VirtualMachineInstanceConditionType) bool {
	for _, c := range vmi.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func no(choice *bool) bool { return choice != nil && !*choice }
