package subresource

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
)

const (
	// defaultGrace is how long a guest has to shut down when its spec does not say, in seconds.
	defaultGrace = 30
	// forcedGrace is what a forced restart leaves it.
	forcedGrace = 1
)

// machine is what a decision is made on.
type machine struct {
	vm  *virtv1.VirtualMachine
	vmi *virtv1.VirtualMachineInstance // nil when there is none
}

// change is what a decision asks for; the zero value asks for nothing.
type change struct {
	run      *bool // switch the machine on or off for good
	requests []virtv1.VirtualMachineStateChangeRequest
	grace    *int64 // new grace period of the running instance, in seconds
}

func (m machine) conflict(format string, args ...any) error {
	return machineConflict(m.vm.Name, fmt.Sprintf(format, args...))
}

func (m machine) live() bool { return m.vmi != nil && !m.vmi.IsFinal() }

// strategy is the run strategy, whichever field says it.
func (m machine) strategy() virtv1.VirtualMachineRunStrategy {
	switch spec := m.vm.Spec; {
	case spec.RunStrategy != nil:
		return *spec.RunStrategy
	case spec.Running != nil && *spec.Running:
		return virtv1.RunStrategyAlways
	default:
		return virtv1.RunStrategyHalted
	}
}

func (m machine) start(o virtv1.StartOptions) (change, error) {
	if m.live() {
		return change{}, m.conflict("VM is already running")
	}
	strategy := m.strategy()
	switch strategy {
	case virtv1.RunStrategyHalted:
		if o.Paused {
			return m.queue(startRequest(o))
		}
		on := true
		return change{run: &on}, nil
	case virtv1.RunStrategyRerunOnFailure:
		if m.vmi != nil && m.vmi.Status.Phase == virtv1.Failed {
			return change{}, m.conflict("%s does not support starting VM from failed state", strategy)
		}
	case virtv1.RunStrategyManual:
	default:
		return change{}, m.conflict("%s does not support manual start requests", strategy)
	}
	if m.vmi != nil { // the old instance is over; it makes room first
		return m.queue(m.stopRequest(), startRequest(o))
	}
	return m.queue(startRequest(o))
}

func (m machine) stop(o virtv1.StopOptions) (change, error) {
	c := change{}
	if m.live() {
		c.grace = o.GracePeriod
	}
	switch m.strategy() {
	case virtv1.RunStrategyHalted:
		if !m.live() || o.GracePeriod == nil || *o.GracePeriod >= m.grace() {
			return change{}, m.conflict("Halted only supports manual stop requests with a shorter graceperiod")
		}
		return c, nil
	case virtv1.RunStrategyRerunOnFailure, virtv1.RunStrategyManual:
		if !m.live() {
			return change{}, m.conflict("VM is not running")
		}
		queued, err := m.queue(m.stopRequest())
		queued.grace = c.grace
		return queued, err
	default:
		off := false
		c.run = &off
		return c, nil
	}
}

func (m machine) restart(o virtv1.RestartOptions) (change, error) {
	if g := o.GracePeriodSeconds; g != nil && *g > 0 {
		return change{}, apierrors.NewBadRequest("For force restart, only gracePeriod=0 is supported for now")
	} else if g != nil && *g < 0 {
		return change{}, apierrors.NewBadRequest("gracePeriod has to be greater or equal to 0")
	}
	if s := m.strategy(); s == virtv1.RunStrategyHalted || s == virtv1.RunStrategyOnce {
		return change{}, m.conflict("RunStategy %s does not support manual restart requests", s) // published releases misspell it
	}
	if m.vmi == nil {
		return change{}, m.conflict("VM is not running: %s", virtv1.RunStrategyHalted)
	}
	c, err := m.queue(m.stopRequest(), virtv1.VirtualMachineStateChangeRequest{Action: virtv1.StartRequest})
	if o.GracePeriodSeconds != nil {
		grace := int64(forcedGrace)
		c.grace = &grace
	}
	return c, err
}

// grace is how long the running instance has to shut down, in seconds.
func (m machine) grace() int64 {
	if m.vmi == nil || m.vmi.Spec.TerminationGracePeriodSeconds == nil {
		return defaultGrace
	}
	return *m.vmi.Spec.TerminationGracePeriodSeconds
}

func (m machine) stopRequest() virtv1.VirtualMachineStateChangeRequest {
	uid := m.vmi.UID
	return virtv1.VirtualMachineStateChangeRequest{Action: virtv1.StopRequest, UID: &uid}
}

func startRequest(o virtv1.StartOptions) virtv1.VirtualMachineStateChangeRequest {
	r := virtv1.VirtualMachineStateChangeRequest{Action: virtv1.StartRequest}
	if o.Paused {
		r.Data = map[string]string{virtv1.StartRequestDataPausedKey: virtv1.StartRequestDataPausedTrue}
	}
	return r
}

// queue asks the VM controller for something. What it has not done yet is only given up for a plain stop.
func (m machine) queue(requests ...virtv1.VirtualMachineStateChangeRequest) (change, error) {
	onlyStop := len(requests) == 1 && requests[0].Action == virtv1.StopRequest
	if len(m.vm.Status.StateChangeRequests) > 0 && !onlyStop {
		return change{}, m.conflict("unable to complete request: stop/start already underway")
	}
	return change{requests: requests}, nil
}
