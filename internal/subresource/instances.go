package subresource

import (
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
)

// check says whether a verb makes sense for an instance; its error is what the user is told.
type check func(*virtv1.VirtualMachineInstance) error

const notRunning = "VMI is not running"

func checkRunning(vmi *virtv1.VirtualMachineInstance) error {
	if vmi.Status.Phase != virtv1.Running {
		return instanceConflict(vmi.Name, notRunning)
	}
	return nil
}

// checkAttached is what console and screen ask first.
func checkAttached(vmi *virtv1.VirtualMachineInstance) error {
	switch vmi.Status.Phase {
	case virtv1.Running:
		return nil
	case virtv1.Failed:
		return instanceConflict(vmi.Name, "VMI is in failed status")
	default:
		return apierrors.NewBadRequest(notRunning)
	}
}

func checkConsole(vmi *virtv1.VirtualMachineInstance) error {
	if attach := vmi.Spec.Domain.Devices.AutoattachSerialConsole; attach != nil && !*attach {
		return apierrors.NewBadRequest("No serial consoles are present.")
	}
	return checkAttached(vmi)
}

func checkScreen(vmi *virtv1.VirtualMachineInstance) error {
	if attach := vmi.Spec.Domain.Devices.AutoattachGraphicsDevice; attach != nil && !*attach {
		return apierrors.NewBadRequest("No graphics devices are present.")
	}
	return checkAttached(vmi)
}

func checkForward(vmi *virtv1.VirtualMachineInstance) error {
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return instanceConflict(vmi.Name, "VMI is paused")
	}
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if len(vmi.Status.Interfaces) == 0 {
		return apierrors.NewBadRequest("no network interfaces are present")
	}
	return nil
}

func checkPause(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return instanceConflict(vmi.Name, "VMI is already paused")
	}
	if probe := vmi.Spec.LivenessProbe; probe != nil && probe.GuestAgentPing == nil {
		return apierrors.NewForbidden(instanceKind, vmi.Name, errPauseProbe)
	}
	return nil
}

// checkFreeze: what freezes file systems is the guest agent.
func checkFreeze(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if !has(vmi, virtv1.VirtualMachineInstanceAgentConnected) {
		return instanceConflict(vmi.Name, "VMI does not have guest agent connected")
	}
	return nil
}

func checkUnpause(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if !has(vmi, virtv1.VirtualMachineInstancePaused) {
		return instanceConflict(vmi.Name, "VMI is not paused")
	}
	return nil
}

func checkSoftReboot(vmi *virtv1.VirtualMachineInstance) error {
	if err := checkRunning(vmi); err != nil {
		return err
	}
	if has(vmi, virtv1.VirtualMachineInstancePaused) {
		return instanceConflict(vmi.Name, "VMI is paused")
	}
	if !has(vmi, virtv1.VirtualMachineInstanceAgentConnected) && !acpi(vmi) {
		return instanceConflict(vmi.Name, "VMI neither have the agent connected nor the ACPI feature enabled")
	}
	return nil
}

// acpi is on unless it is switched off.
func acpi(vmi *virtv1.VirtualMachineInstance) bool {
	f := vmi.Spec.Domain.Features
	return f == nil || f.ACPI.Enabled == nil || *f.ACPI.Enabled
}

func has(vmi *virtv1.VirtualMachineInstance, condition virtv1.VirtualMachineInstanceConditionType) bool {
	for _, c := range vmi.Status.Conditions {
		if c.Type == condition {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// agentStream checks an instance and hands the request to the agent of its node, websockets included.
func agentStream(allowed check) func(*Server, http.ResponseWriter, *http.Request) {
	return func(s *Server, w http.ResponseWriter, r *http.Request) {
		vmi, err := s.instance(r.Context(), objectKey(r))
		if err == nil {
			err = allowed(vmi)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		s.toAgent(w, r, vmi)
	}
}

// forwardToMachine is port forwarding by the VM's name.
func (s *Server) forwardToMachine(w http.ResponseWriter, r *http.Request) {
	m, err := s.machine(r.Context(), objectKey(r))
	if err == nil && m.vmi == nil {
		err = m.conflict("VMI is not started")
	}
	if err == nil {
		err = checkForward(m.vmi)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	s.toAgent(w, r, m.vmi)
}

// askGuest is what the guest agent answers. Its errors are plain text with status 500, as clients of these verbs expect.
func (s *Server) askGuest(w http.ResponseWriter, r *http.Request) {
	vmi, err := s.instance(r.Context(), objectKey(r))
	if err != nil {
		refuse(w, err)
		return
	}
	if err = checkRunning(vmi); err == nil && !has(vmi, virtv1.VirtualMachineInstanceAgentConnected) {
		err = instanceConflict(vmi.Name, "VMI does not have guest agent connected")
	}
	if err != nil {
		writeText(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.toAgent(w, r, vmi)
}
