package vmstate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

func (s *step) setPhase(phase virtv1.VirtualMachineInstancePhase) {
	if s.r.Status.Phase == phase {
		return
	}
	s.r.Status.Phase = phase
	s.r.Status.PhaseTransitionTimestamps = append(s.r.Status.PhaseTransitionTimestamps,
		virtv1.VirtualMachineInstancePhaseTransitionTimestamp{Phase: phase, PhaseTransitionTimestamp: metav1.NewTime(s.o.Now)})
}

// setCondition sets one of the node's conditions; its times move only when the status does.
func (s *step) setCondition(kind virtv1.VirtualMachineInstanceConditionType, is bool, reason, message string) {
	status := corev1.ConditionFalse
	if is {
		status = corev1.ConditionTrue
	}
	now := metav1.NewTime(s.o.Now)
	wanted := virtv1.VirtualMachineInstanceCondition{Type: kind, Status: status, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now}
	for i, c := range s.r.Status.Conditions {
		if c.Type != kind {
			continue
		}
		if c.Status == status {
			wanted.LastProbeTime, wanted.LastTransitionTime = c.LastProbeTime, c.LastTransitionTime
		}
		s.r.Status.Conditions[i] = wanted
		return
	}
	s.r.Status.Conditions = append(s.r.Status.Conditions, wanted)
}

func (s *step) dropCondition(kinds ...virtv1.VirtualMachineInstanceConditionType) {
	s.r.Status.Conditions = slices.DeleteFunc(s.r.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
		return slices.Contains(kinds, c.Type)
	})
}

// clearRunning takes back what is only true of a running guest.
func (s *step) clearRunning() {
	s.dropCondition(virtv1.VirtualMachineInstancePaused, virtv1.VirtualMachineInstanceAgentConnected, virtv1.VirtualMachineInstanceUnsupportedAgent,
		virtv1.VirtualMachineInstanceAccessCredentialsSynchronized, conditionAddresses)
}

// describeStart writes what does not change while the guest runs.
func (s *step) describeStart() {
	d := s.o.Domain
	if d.Machine != "" {
		s.r.Status.Machine = &virtv1.Machine{Type: d.Machine}
	}
	s.describeMigration()
}

// describeDomain writes what changes while the guest runs.
func (s *step) describeDomain() {
	s.describePause()
	s.describeAgent()
	s.describeAccess()
	s.describePlugging()
	s.r.Status.FSFreezeStatus = ""
	if s.o.Domain.Frozen {
		s.r.Status.FSFreezeStatus = "frozen"
	}
	if s.o.Domain.NICs != nil {
		s.r.Status.Interfaces = interfaces(s.o.VMI, s.o.Domain)
		s.describeSources()
	}
}

// describePause tells a pause that somebody wants to know of from QEMU's own, such as the last moment of a migration.
func (s *step) describePause() {
	switch state := s.o.Domain.RunState; {
	case state == "paused" && s.o.Held:
		s.setCondition(virtv1.VirtualMachineInstancePaused, true, reasonPausedByMonitor, "VMI was paused by the migration monitor")
	case state == "paused", state == "prelaunch":
		s.setCondition(virtv1.VirtualMachineInstancePaused, true, reasonPausedByUser, "VMI was paused by user")
	case state == "io-error":
		s.setCondition(virtv1.VirtualMachineInstancePaused, true, reasonPausedIOError, "VMI was paused, low-level IO error detected")
	case state == "running":
		s.dropCondition(virtv1.VirtualMachineInstancePaused)
	}
}

func (s *step) describeAgent() {
	guest := s.o.Domain.Guest
	if guest == nil {
		s.dropCondition(virtv1.VirtualMachineInstanceAgentConnected, virtv1.VirtualMachineInstanceUnsupportedAgent)
		return
	}
	s.setCondition(virtv1.VirtualMachineInstanceAgentConnected, true, "", "")
	if len(guest.Missing) > 0 {
		s.setCondition(virtv1.VirtualMachineInstanceUnsupportedAgent, true, reasonAgentCommands, messageAgentOld+": "+strings.Join(guest.Missing, ", "))
	} else {
		s.dropCondition(virtv1.VirtualMachineInstanceUnsupportedAgent)
	}
	if os := GuestOS(guest.OS); os != (virtv1.VirtualMachineInstanceGuestOSInfo{}) {
		s.r.Status.GuestOSInfo = os
	}
}

// describeAccess says whether the guest's users have the credentials that the instance names. A guest that boots has no agent yet,
// which is no news.
func (s *step) describeAccess() {
	const kind = virtv1.VirtualMachineInstanceAccessCredentialsSynchronized
	d := s.o.Domain
	if !d.WantsAccess {
		return
	}
	switch {
	case d.Guest == nil:
		s.setCondition(kind, false, "", messageAgentOffline)
	case d.Access == nil:
		return // the agent has just come; an earlier verdict stands
	case d.Access.Failure == "":
		s.tellChange(kind, eventAccess)
		s.setCondition(kind, true, "", "")
	default:
		s.tellChange(kind, eventNoAccess(d.Access.Failure))
		s.setCondition(kind, false, "", d.Access.Failure)
	}
}

// tellChange tells an event if the condition does not say the same already.
func (s *step) tellChange(kind virtv1.VirtualMachineInstanceConditionType, e Event) {
	for _, c := range s.r.Status.Conditions {
		if c.Type == kind && (c.Status == corev1.ConditionTrue) == (e == eventAccess) && (e == eventAccess || e == eventNoAccess(c.Message)) {
			return
		}
	}
	s.tell(e)
}
