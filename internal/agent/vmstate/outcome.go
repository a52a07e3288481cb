package vmstate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qmp"
)

// What a launcher's exit code says besides QEMU's own.
const (
	cutOff   = 143 // the guest did not power down in its grace period after the pod was told to end
	bySignal = 128
)

// endOfPod is how a QEMU ended whose launcher was gone before it could be asked.
func endOfPod(p Pod) Ended {
	switch {
	case p.ExitCode == cutOff:
		return Ended{Reason: qmp.HostQuit}
	case p.ExitCode > bySignal:
		return Ended{ExitCode: bySignal - p.ExitCode}
	case p.ExitCode == 0 && p.Phase == corev1.PodFailed:
		return Ended{ExitCode: 1} // another container, or the kubelet, ended the pod
	default:
		return Ended{ExitCode: p.ExitCode}
	}
}

// outcome is the final phase of a guest and what people are told.
func outcome(e Ended, acpi bool) (virtv1.VirtualMachineInstancePhase, Event) {
	switch e.Reason {
	case qmp.GuestShutdown, qmp.GuestReset:
		return virtv1.Succeeded, eventShutDown
	case qmp.HostQuit, qmp.HostSignal:
		return destroyed(acpi)
	case qmp.GuestPanic:
		return virtv1.Failed, eventCrashed
	}
	if e.ExitCode == 0 {
		return virtv1.Succeeded, eventShutDown
	}
	crashed := eventCrashed
	crashed.Message = fmt.Sprintf("%s %s; look at the log of the launcher pod.", crashed.Message, exitText(e.ExitCode))
	return virtv1.Failed, crashed
}

// destroyed is a guest whose plug was pulled. One that could have heard the power button did not shut down in its grace period.
func destroyed(acpi bool) (virtv1.VirtualMachineInstancePhase, Event) {
	if acpi {
		return virtv1.Failed, eventShutDown
	}
	return virtv1.Succeeded, eventShutDown
}

func exitText(code int) string {
	if code < 0 {
		return fmt.Sprintf("QEMU was killed by signal %d", -code)
	}
	return fmt.Sprintf("QEMU ended with exit code %d", code)
}

func hasACPI(vmi *virtv1.VirtualMachineInstance) bool {
	features := vmi.Spec.Domain.Features
	return features == nil || features.ACPI.Enabled == nil || *features.ACPI.Enabled
}
