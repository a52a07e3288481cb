// Package vmstate decides what a node does about a virtual machine instance: Step takes what was observed and returns the
// status to write and the actions to carry out. It is pure: no clock, no client, no goroutine. Package vmdriver observes and acts.
package vmstate

import (
	"net"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qga"
	"patchbay/internal/qemu/qmp"
)

// Observed is everything that Step decides from.
type Observed struct {
	Now      time.Time
	Node     string
	VMI      *virtv1.VirtualMachineInstance
	Pod      Pod
	Launcher Launcher
	Domain   *Domain  // nil while QEMU's monitor is not connected
	Ended    *Ended   // nil while QEMU may be running
	Busy     bool     // a Start or an Attach is under way
	Failure  *Failure // of the last Start or Attach

	// Sending and Receiving are this node's part of a migration; nil: it has none now.
	Sending   *Sending
	Receiving *Receiving
	// GaveAway is the migration in which this node has given the guest away; empty: it has not. It outlives the agent.
	GaveAway types.UID
	// Held says that a migration has stopped the guest in order to come to an end. It outlives the agent.
	Held bool
	// PeerOver says that the other side's pod has ended, with its QEMU. It is looked at only where it matters.
	PeerOver bool
	// Plugging says that a SyncNICs is under way, and NICFailure why the last one did not do all that it should.
	Plugging   bool
	NICFailure *Failure
}

// Pod is the launcher's pod on this node.
type Pod struct {
	Found     bool
	Name      string
	Phase     corev1.PodPhase
	Deleting  time.Time // when its deletion was asked for; zero: it was not
	Connected bool      // the CNI server has recorded its network
	// ExitCode is the launcher's when the pod is over: QEMU's, or 128 plus the number of the signal that killed QEMU, or cutOff.
	ExitCode int
}

func (p Pod) over() bool { return p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed }

// Launcher is what the launcher says. It is not asked while the monitor is connected.
type Launcher struct {
	Reachable bool
	State     protocol.State
}

// Domain is a running QEMU.
type Domain struct {
	RunState string // QEMU's name of it: running, paused, io-error, shutdown, guest-panicked, postmigrate, …
	// Memory is QEMU's name of how far a migration is: active, completed, postcopy-active, …; empty: there was none.
	Memory   string
	Machine  string // machine type; empty: not known
	NICs     []NIC
	Frozen   bool   // the guest's file systems
	Released int    // how many network cards QEMU said are gone
	Guest    *Guest // nil: no guest agent
	// WantsAccess says that the guest agent is to give users their credentials.
	WantsAccess bool
	// Access is how the last attempt ended to give the guest's users their credentials; nil: there was none since the agent came.
	Access *Access
	// PowerButton is when it was pressed last; zero: never by this agent.
	PowerButton time.Time
	// Killed is when QEMU was last told to end at once.
	Killed time.Time
	// Rebooting is when the guest was asked to shut down in order to be reset; zero: it was not.
	Rebooting time.Time
}

// NIC is a network card of a running QEMU.
type NIC struct {
	Name         string // of the interface in the VMI
	Network      string // that it was joined to, by the name of its attachment definition; empty for the pod network
	MAC          net.HardwareAddr
	IPs          []netip.Addr // that the network gave, in the order of the cluster's families
	Observed     []netip.Addr // that the guest was heard to use
	PodInterface string
	Queues       int
	LinkDown     bool
}

// Access says how an attempt to give users their credentials ended.
type Access struct {
	Failure string // empty: it worked
}

// Guest is what the guest agent said last.
type Guest struct {
	Missing    []string        // required commands that it does not know
	Interfaces []qga.Interface // nil: not asked yet
	OS         qga.OS
}

// Ended is how a QEMU ended.
type Ended struct {
	Reason   qmp.ShutdownReason // empty: nobody saw it
	ExitCode int                // -N when signal N killed it
}

// Failure is why the last Start or Attach did not work.
type Failure struct {
	Message string
	// Final failures are of the specification or of the network: trying again would not help.
	Final bool
	// Retry is when to try again, if not Final.
	Retry time.Time
}
