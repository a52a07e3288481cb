package vmstate

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qmp"
)

// Two nodes hold a guest that migrates, and one may run it. Who that is follows from these rules, whatever dies and however long
// messages take:
//
//   - The target's QEMU starts stopped and stays so when it has received everything. The target lets it run when the source says so
//     (GaveAway), or when the source's QEMU is known to be dead.
//   - The source notes durably that it gives the guest away before it says so. Without the note it lets the guest run again after
//     any failure; with it, never.
//   - The object follows: the target moves the instance to itself when the guest runs there, the source says failed when it has it back.

// Sending is this node's part of a migration that it is the source of.
type Sending struct {
	Migration types.UID
	// Over says that the sender has ended. Unless the guest was given away, Failure says why.
	Over    bool
	Failure string
	Aborted bool
	Mode    virtv1.MigrationMode
}

// Receiving is this node's part of a migration that it is the target of.
type Receiving struct {
	Migration types.UID
	// Address and Ports are where the source is awaited; Network says what kind of address it is.
	Address string
	Ports   map[string]int
	Network virtv1.MigrationNetworkType
	// Loaded says that QEMU has everything; Taken that the guest was told to run here.
	Loaded, Taken bool
	TakenAt       time.Time
	// Connected says that the source's agent is heard.
	Connected bool
	Failure   string
}

// Actions of migrations.
const (
	// Send begins to send the guest to the target that the instance names, or says again that it was given away.
	Send Action = "send"
	// AbortSend gives a migration up.
	AbortSend Action = "abort send"
	// ForgetSend ends the sender.
	ForgetSend Action = "forget send"
	// Continue lets a guest run that QEMU has stopped in order to send it.
	Continue Action = "continue"
	// Receive prepares this node for a guest, and waits for it.
	Receive Action = "receive"
	// TakeOver lets a received guest run whose source is dead.
	TakeOver Action = "take over"
	// ForgetReceive ends the receiver; QEMU is left as it is.
	ForgetReceive Action = "forget receive"
)

// askAgain is how often the other side's pod is looked at when its agent is not heard.
const askAgain = 2 * time.Second

// migrating is the state of a migration under way; nil when there is none.
func migrating(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstanceMigrationState {
	ms := vmi.Status.MigrationState
	if ms == nil || ms.Completed || ms.Failed || ms.TargetNode == "" {
		return nil
	}
	return ms
}

// arrives says that the instance is on its way to this node.
func (s *step) arrives() bool {
	ms := migrating(s.o.VMI)
	return ms != nil && ms.TargetNode == s.o.Node && s.o.VMI.Status.NodeName != s.o.Node && ms.TargetPod == s.o.Pod.Name
}

// receive is the target's side.
func (s *step) receive() {
	ms, r := migrating(s.o.VMI), s.o.Receiving
	if r != nil && r.Migration != ms.MigrationUID {
		s.act(ForgetReceive)
		s.kill()
		return
	}
	switch {
	case s.torn():
		s.tear()
	case s.follows():
		ms := s.r.Status.MigrationState
		ms.Mode, ms.TargetNodeDomainDetected = virtv1.MigrationPostCopy, true
	case r != nil && r.Taken:
		s.moveHere(r.TakenAt)
	case s.o.Domain != nil && s.o.Domain.RunState == "running": // an earlier agent has let it run, and not lived to say so
		s.moveHere(s.o.Now)
	case s.o.VMI.DeletionTimestamp != nil:
		s.wake(s.o.Now.Add(askAgain)) // its pods go, this one too
	case s.targetEnded():
		s.targetFailed("QEMU on the target node ended")
	case r != nil && r.Failure != "":
		s.targetFailed(r.Failure)
	case r == nil:
		s.beginReceiving()
	default:
		s.await(r)
	}
}

// follows says that the guest runs here and that part of its memory is still on its way. The source is needed until it has come.
func (s *step) follows() bool { return s.ranEarly() && s.o.Domain.Memory == qmp.MigrationPostCopy }

// torn says that such memory will never come. Each node has a part of the guest, and none has all of it.
func (s *step) torn() bool {
	return s.ranEarly() && (s.o.Domain.Memory == qmp.MigrationPostCopyPaused || s.o.Domain.Memory == qmp.MigrationFailed)
}

// ranEarly says that the guest was told to run here. Only with post-copy that is before QEMU has everything.
func (s *step) ranEarly() bool {
	d, r := s.o.Domain, s.o.Receiving
	return d != nil && (d.RunState == "running" || r != nil && r.Taken)
}

// tear ends a guest of which nobody has all.
func (s *step) tear() {
	s.failMigration(reasonTorn)
	s.setPhase(virtv1.Failed)
	s.tell(eventCrashed)
	s.clearRunning()
	s.kill()
}

func (s *step) targetEnded() bool {
	return s.o.Ended != nil || s.o.Pod.over() || s.o.Domain == nil && s.o.Launcher.Reachable && s.o.Launcher.State == protocol.Exited
}

func (s *step) beginReceiving() {
	switch {
	case s.o.Busy || !s.o.Pod.Found:
	case !s.o.Pod.Connected || s.o.Domain == nil && !s.o.Launcher.Reachable:
		s.wake(s.o.Now.Add(lookAgain))
	case s.o.Domain == nil && s.o.Launcher.State == protocol.Running: // by an earlier agent
		s.act(Attach)
	case s.o.Domain == nil && s.o.Failure != nil && s.o.Now.Before(s.o.Failure.Retry):
		s.wake(s.o.Failure.Retry)
	default:
		s.act(Receive)
	}
}

// await keeps the object in step with the receiver, and takes over from a source that is dead.
func (s *step) await(r *Receiving) {
	ms := s.r.Status.MigrationState
	if r.Address != "" {
		ms.TargetNodeAddress, ms.TargetDirectMigrationNodePorts, ms.MigrationNetworkType = r.Address, r.Ports, r.Network
	}
	if s.o.Domain != nil {
		ms.TargetNodeDomainDetected = true
	}
	switch {
	case !s.o.PeerOver && !r.Connected && ms.StartTimestamp != nil:
		s.wake(s.o.Now.Add(askAgain))
	case s.o.PeerOver && r.Loaded:
		s.act(TakeOver)
	case s.o.PeerOver && !r.Connected:
		s.targetFailed("the source's QEMU ended before the guest was here")
	}
}

// moveHere makes this node the instance's.
func (s *step) moveHere(at time.Time) {
	ms, taken := s.r.Status.MigrationState, metav1.NewTime(at)
	ms.Completed, ms.EndTimestamp, ms.TargetNodeDomainReadyTimestamp, ms.TargetNodeDomainDetected = true, &taken, &taken, true
	if ms.AbortRequested {
		ms.AbortStatus = virtv1.MigrationAbortFailed // too late
	}
	s.r.Status.NodeName = s.o.Node
	s.r.Labels = map[string]string{virtv1.NodeNameLabel: s.o.Node}
	s.dropCondition(virtv1.VirtualMachineInstancePaused)
	if s.o.Domain != nil {
		s.describeDomain()
	}
	s.tell(eventMigrated(s.o.Node))
}

// targetFailed gives up. Once the source has begun, the source says so: it alone knows that it has the guest back. When the source
// is dead too, nobody else would.
func (s *step) targetFailed(reason string) {
	ms := s.r.Status.MigrationState
	if ms.StartTimestamp == nil || s.o.PeerOver {
		s.failMigration(reason)
	} else {
		s.wake(s.o.Now.Add(askAgain))
	}
	if s.o.Domain != nil || s.o.Launcher.Reachable && s.o.Launcher.State == protocol.Running {
		s.kill()
	}
}

func (s *step) failMigration(reason string) {
	ms, now := s.r.Status.MigrationState, metav1.NewTime(s.o.Now)
	ms.Completed, ms.Failed, ms.FailureReason, ms.EndTimestamp = true, true, reason, &now
	s.tell(eventMigrationFailed(reason))
}

// givenAway says that this node must not run the guest any more, although the object does not know yet.
func (s *step) givenAway() bool {
	ms := migrating(s.o.VMI)
	return ms != nil && ms.SourceNode == s.o.Node && s.o.GaveAway != "" && s.o.GaveAway == ms.MigrationUID
}

// handOver waits until the target has moved the instance to itself. A target that ended first has taken the guest with it.
func (s *step) handOver() {
	ms := migrating(s.o.VMI)
	if s.o.PeerOver {
		reason := fmt.Sprintf("the pod %s ended after the guest had moved into it", ms.TargetPod)
		s.failMigration(reason)
		s.setPhase(virtv1.Failed)
		s.tell(eventCrashed)
		s.clearRunning()
		s.cleanUp()
		return
	}
	switch {
	case s.o.Sending != nil && s.o.Sending.Over: // the target has heard it, but its agent may have died before it moved the instance
		s.act(ForgetSend)
	case s.o.Sending == nil && !s.o.Busy:
		if s.o.Domain == nil && s.o.Launcher.Reachable && s.o.Launcher.State == protocol.Running {
			s.act(Attach)
		}
		s.act(Send)
	}
	s.wake(s.o.Now.Add(askAgain))
}

// send is the source's side, beside the ordinary care for a running guest.
func (s *step) send() {
	ms, sending := s.r.Status.MigrationState, s.o.Sending
	if m := migrating(s.o.VMI); m == nil || m.SourceNode != s.o.Node || m.TargetNode == s.o.Node {
		s.comeBack()
		return
	}
	if sending != nil && sending.Migration != ms.MigrationUID {
		s.act(ForgetSend)
		return
	}
	switch {
	case sending != nil && sending.Over:
		s.sendFailed(sending)
	case sending != nil && ms.AbortRequested:
		ms.AbortStatus = virtv1.MigrationAbortInProgress
		s.act(AbortSend)
		s.wake(s.o.Now.Add(askAgain))
	case sending != nil:
		ms.Mode = sending.Mode
		s.wake(s.o.Now.Add(askAgain))
	case ms.AbortRequested:
		s.sendFailed(&Sending{Aborted: true, Failure: reasonAborted})
	case s.o.Domain.RunState == "postmigrate": // QEMU has sent everything for an agent that did not live to say so
		s.sendFailed(&Sending{Failure: reasonInterrupted})
	case ms.TargetNodeAddress == "" || len(ms.TargetDirectMigrationNodePorts) == 0:
	case ms.StartTimestamp == nil:
		now := metav1.NewTime(s.o.Now)
		ms.StartTimestamp, ms.Mode = &now, virtv1.MigrationPreCopy // the next turn sends, if this is written
	case s.o.Plugging: // its outcome must be known: the target starts with the cards that the guest has
	default:
		s.act(Send)
	}
}

func (s *step) sendFailed(sending *Sending) {
	ms := s.r.Status.MigrationState
	if sending.Aborted {
		ms.AbortStatus = virtv1.MigrationAbortSucceeded
	}
	s.failMigration(sending.Failure)
	s.resume()
}

// comeBack lets a guest run that a failed migration has left stopped. While QEMU still ends the migration, it does so itself.
func (s *step) comeBack() {
	if s.o.Sending != nil {
		s.act(ForgetSend) // not before the object says how it ended: the migration would begin again
	}
	s.resume()
}

func (s *step) resume() {
	ms, state := s.o.VMI.Status.MigrationState, s.o.Domain.RunState
	stopped := state == "postmigrate" || state == "paused" && s.o.Held
	if stopped && ms != nil && ms.SourceNode == s.o.Node && s.o.GaveAway != ms.MigrationUID {
		s.act(Continue)
		s.wake(s.o.Now.Add(lookAgain))
	}
}

// leftBehind says that a QEMU on this node is what a migration has left: it must never run again.
func (s *step) leftBehind() bool {
	ms := s.o.VMI.Status.MigrationState
	if ms == nil || !ms.Completed && !ms.Failed {
		return false
	}
	source := !ms.Failed && ms.SourceNode == s.o.Node && ms.SourcePod == s.o.Pod.Name
	target := ms.Failed && ms.TargetNode == s.o.Node && ms.TargetPod == s.o.Pod.Name
	return source || target
}
