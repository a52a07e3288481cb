package vmstate

import (
	"slices"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// Result is what Step wants.
type Result struct {
	// Status is the whole wanted status. It is the observed one with the node's own fields set.
	Status virtv1.VirtualMachineInstanceStatus
	// Labels are to be set together with Status.
	Labels map[string]string
	// Events are told when Status has been written, so that a lost race does not tell them twice.
	Events []Event
	// Actions are carried out in order.
	Actions []Action
	// Wake is when to look again if nothing happens; zero: never.
	Wake time.Time
	// Done says that this node has nothing more to do for the instance.
	Done bool
}

// Event is for people who watch the object.
type Event struct{ Type, Reason, Message string }

// Action is one of the types below.
type Action string

const (
	// Start wires the NICs and has the launcher start QEMU.
	Start Action = "start"
	// Attach connects to a QEMU that runs and takes up its service, without touching the guest.
	Attach Action = "attach"
	// PowerButton asks the guest to shut down.
	PowerButton Action = "power button"
	// Kill ends QEMU at once.
	Kill Action = "kill"
	// Reset resets a guest that has shut down and lets it run: the second half of a soft reboot.
	Reset Action = "reset"
	// GiveUpReboot lets the guest's next shutdown be one.
	GiveUpReboot Action = "give up reboot"
	// SetLinks gives every NIC the link state that its interface asks for.
	SetLinks Action = "set links"
	// SyncNICs plugs network cards that the instance has and the guest has not, and unplugs absent ones.
	SyncNICs Action = "sync NICs"
	// Release ends what this node serves to the guest: addresses, connections.
	Release Action = "release"
)

// Times of the state machine.
const (
	// DefaultGrace is how long a guest may take to shut down when its specification does not say.
	DefaultGrace = 30 * time.Second
	// pressAgain repeats the power button: a guest that is booting does not hear it.
	pressAgain = 10 * time.Second
	// killAgain repeats a kill that had no visible effect.
	killAgain = 5 * time.Second
	// rebootLimit is how long a guest that is to reboot may take to shut down.
	rebootLimit = 5 * time.Minute
	// lookAgain is how soon a launcher that cannot be reached is tried again: there is no event for it.
	lookAgain = 250 * time.Millisecond
)

// Step decides. It is called again after everything that changes and after Wake.
func Step(o Observed) Result {
	s := &step{o: o, r: Result{Status: *o.VMI.Status.DeepCopy()}}
	s.run()
	return s.r
}

type step struct {
	o Observed
	r Result
}

func (s *step) run() {
	switch {
	case s.o.VMI.IsFinal():
		s.cleanUp()
	case s.arrives():
		s.receive()
	case s.o.VMI.Status.NodeName != s.o.Node:
		s.leave()
	case s.givenAway():
		s.handOver()
	case s.o.Ended != nil:
		s.finish(*s.o.Ended)
	case s.o.Failure != nil && s.o.Failure.Final:
		s.fail(s.o.Failure.Message)
	case s.o.Pod.over():
		s.finish(endOfPod(s.o.Pod))
	case !s.endAsked().IsZero():
		s.shutDown()
	case s.o.Domain != nil:
		s.attend()
	default:
		s.bringUp()
	}
}

func (s *step) act(a Action)     { s.r.Actions = append(s.r.Actions, a) }
func (s *step) tell(e Event)     { s.r.Events = append(s.r.Events, e) }
func (s *step) wake(t time.Time) { s.r.Wake = earliest(s.r.Wake, t) }

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// cleanUp is after the end. A launcher that has started nothing is ended by its pod's deletion.
func (s *step) cleanUp() {
	if s.o.Domain != nil || s.o.Launcher.Reachable && s.o.Launcher.State == protocol.Running {
		s.kill()
		return
	}
	s.act(Release)
	s.r.Done = true
}

// leave is for an instance that is elsewhere: not here yet, or migrated away.
func (s *step) leave() {
	running := s.o.Domain != nil || s.o.Launcher.Reachable && s.o.Launcher.State == protocol.Running
	if s.o.Domain != nil && s.o.Domain.RunState == "postmigrate" || running && s.leftBehind() {
		s.kill()
		return
	}
	if s.o.Domain == nil {
		s.act(Release)
		s.r.Done = true
	}
}

// bringUp gets from a ready pod to a connected monitor.
func (s *step) bringUp() {
	if phase := s.o.VMI.Status.Phase; s.o.Busy || !s.o.Pod.Found || phase != virtv1.Scheduled && phase != virtv1.Running {
		return
	}
	if f := s.o.Failure; f != nil && s.o.Now.Before(f.Retry) {
		s.wake(f.Retry)
		return
	}
	switch {
	case !s.o.Launcher.Reachable || !s.o.Pod.Connected:
		s.wake(s.o.Now.Add(lookAgain))
	case s.o.Launcher.State == protocol.Running:
		s.act(Attach)
	case s.o.Launcher.State == protocol.Waiting && s.o.VMI.Status.Phase == virtv1.Scheduled:
		s.act(Start)
	default:
		// A launcher that waits although the guest was running, or that has ended: its end is coming, by itself or by the pod.
		s.wake(s.o.Now.Add(lookAgain))
	}
}

// attend keeps the status of a running guest.
func (s *step) attend() {
	d := s.o.Domain
	s.reboot()
	if s.o.VMI.Status.Phase != virtv1.Running {
		s.setPhase(virtv1.Running)
		s.tell(eventStarted)
		s.describeStart()
	}
	s.describeDomain()
	if slices.ContainsFunc(d.NICs, func(n NIC) bool { return n.LinkDown != WantsLinkDown(s.o.VMI, n.Name) }) {
		s.act(SetLinks)
	}
	s.send()
	s.syncNICs()
}

// WantsLinkDown says whether the interface of that name asks for a NIC without carrier.
func WantsLinkDown(vmi *virtv1.VirtualMachineInstance, name string) bool {
	return slices.ContainsFunc(vmi.Spec.Domain.Devices.Interfaces, func(i virtv1.Interface) bool {
		return i.Name == name && i.State == virtv1.InterfaceStateLinkDown
	})
}

// reboot carries on with a soft reboot. A guest that does not hear the power button keeps running; if it shuts down much later,
// that is something else.
func (s *step) reboot() {
	d := s.o.Domain
	if d.Rebooting.IsZero() {
		return
	}
	deadline := d.Rebooting.Add(rebootLimit)
	switch {
	case d.RunState == "shutdown":
		s.act(Reset)
	case !s.o.Now.Before(deadline):
		s.act(GiveUpReboot)
	default:
		s.wake(deadline)
	}
}

// endAsked is when somebody asked for the guest's end; zero: nobody did.
func (s *step) endAsked() time.Time {
	var asked time.Time
	if t := s.o.VMI.DeletionTimestamp; t != nil {
		asked = t.Time
	}
	return earliest(asked, s.o.Pod.Deleting)
}

func (s *step) grace() time.Duration {
	if g := s.o.VMI.Spec.TerminationGracePeriodSeconds; g != nil {
		return time.Duration(*g) * time.Second
	}
	return DefaultGrace
}

// shutDown presses the power button, and pulls the plug when the grace period is over.
func (s *step) shutDown() {
	deadline := s.endAsked().Add(s.grace())
	d := s.o.Domain
	switch {
	case d == nil && !s.o.Launcher.Reachable:
		s.wake(s.o.Now.Add(lookAgain))
		if !s.o.Pod.Found {
			s.act(Release)
			s.r.Done = true
		}
	case d == nil && s.o.Launcher.State != protocol.Running:
		s.wake(s.o.Now.Add(lookAgain)) // the launcher ends with its pod
	case d == nil && !s.o.Now.Before(deadline):
		s.kill()
	case d == nil:
		if !s.o.Busy {
			s.act(Attach)
		}
		s.wake(deadline)
	case !s.o.Now.Before(deadline) || d.RunState != "running":
		s.describeDomain()
		if d.Killed.IsZero() {
			s.tell(eventKilled)
		}
		s.kill() // a guest that does not run cannot hear the button either
	default:
		s.describeDomain()
		s.press(deadline)
	}
}

func (s *step) press(deadline time.Time) {
	again := s.o.Domain.PowerButton.Add(pressAgain)
	if s.o.Domain.PowerButton.IsZero() || !s.o.Now.Before(again) {
		s.act(PowerButton)
		again = s.o.Now.Add(pressAgain)
	}
	if s.o.Domain.PowerButton.IsZero() {
		s.tell(eventShutting)
	}
	s.wake(earliest(deadline, again))
}

func (s *step) kill() {
	var again time.Time
	if d := s.o.Domain; d != nil && !d.Killed.IsZero() {
		again = d.Killed.Add(killAgain)
	}
	if s.o.Now.Before(again) {
		s.wake(again)
		return
	}
	s.act(Kill)
	s.wake(s.o.Now.Add(killAgain))
}

// finish writes how the guest ended.
func (s *step) finish(e Ended) {
	phase, event := outcome(e, hasACPI(s.o.VMI))
	s.setPhase(phase)
	s.tell(event)
	s.clearRunning()
	s.act(Release)
}

// fail gives up: with these settings the guest cannot be started.
func (s *step) fail(message string) {
	s.setPhase(virtv1.Failed)
	s.tell(eventFailed(message))
	s.setCondition(virtv1.VirtualMachineInstanceSynchronized, false, reasonSyncFailed, message)
	s.act(Release)
}
