// Package lifecycle decides what happens next to a virtual machine, its instance and the instance's pod. StepVM and StepVMI take
// what is known and return actions; carrying them out brings the objects one step nearer to what they should be. The package
// has no clock, client or goroutine: time and chance come in with the view, so that every story can be replayed.
package lifecycle

import (
	"maps"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/vm/launcherpod"
)

// Object is what actions are about.
type Object interface {
	metav1.Object
	runtime.Object
}

// Action is one of Create, Patch, Delete and Event. Actions are carried out in order, up to the first that fails.
type Action interface{ action() }

// Create makes an object. With Keep, one of that name that exists already is as good; without, it means that our knowledge is old.
type Create struct {
	Object Object
	Keep   bool
}

// Patch changes what differs between From and To, if the object is still as From says.
type Patch struct {
	From, To Object
	Status   bool // through the status subresource
}

// Delete deletes the object with this UID, if it is still there.
type Delete struct {
	Object       Object
	GraceSeconds *int64 // nil: what the object says
}

// Event tells the user.
type Event struct {
	Object  Object
	Type    string
	Reason  string
	Message string
}

func (Create) action() {}
func (Patch) action()  {}
func (Delete) action() {}
func (Event) action()  {}

// Decision is the outcome of a step.
type Decision struct {
	Actions []Action
	// Confirm says that an action makes something that must exist once, or gives something up for good. It must be decided
	// again on objects read from the API server itself, not from a cache that may lag behind our own writes.
	Confirm bool
	// After is when to step again even if nothing happens; 0 means never.
	After time.Duration
}

// Settings are what an administrator chose.
type Settings struct {
	Launcher launcherpod.Cluster
	// DefaultNetwork connects a machine that names no network, as admission does; nil leaves it to admission.
	DefaultNetwork func(namespace string, spec *virtv1.VirtualMachineInstanceSpec) error
	// LiveUpdate lets changes of placement reach a running machine's instance, where its next migration heeds them.
	LiveUpdate bool
	// UseEmulation has guests emulated even where the processor could execute them.
	UseEmulation bool
}

// SettingsFrom reads the settings from a KubeVirt configuration, in which everything is optional.
func SettingsFrom(launcherImage string, c virtv1.KubeVirtConfiguration) Settings {
	s := Settings{
		Launcher: launcherpod.Cluster{
			LauncherImage: launcherImage,
			// The binding of tenants' networks needs no registration; that of passt is an administrator's decision.
			Plugins: map[string]virtv1.InterfaceBindingPlugin{"l2bridge": {}},
		},
		LiveUpdate: c.VMRolloutStrategy == nil || *c.VMRolloutStrategy == virtv1.VMRolloutStrategyLiveUpdate,
	}
	if d := c.DeveloperConfiguration; d != nil {
		s.Launcher.CPUAllocationRatio = d.CPUAllocationRatio
		s.UseEmulation = d.UseEmulation
	}
	if n := c.NetworkConfiguration; n != nil {
		maps.Copy(s.Launcher.Plugins, n.Binding)
	}
	return s
}

func (s Settings) defaultNetwork(namespace string, spec *virtv1.VirtualMachineInstanceSpec) error {
	if s.DefaultNetwork == nil {
		return nil
	}
	return s.DefaultNetwork(namespace, spec)
}

// sooner is the earlier of two waits, where 0 means no wait at all.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
