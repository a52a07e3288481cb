package lifecycle

import (
	"math"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

type stateChange = virtv1.VirtualMachineStateChangeRequest

// pendingRequests drops the requests that are fulfilled: a stop when its instance is gone, a start when an instance lives.
func pendingRequests(requests []stateChange, vmi *virtv1.VirtualMachineInstance) []stateChange {
	for len(requests) > 0 && fulfilled(requests[0], vmi) {
		requests = requests[1:]
	}
	if len(requests) == 0 {
		return nil
	}
	return slices.Clone(requests)
}

func fulfilled(r stateChange, vmi *virtv1.VirtualMachineInstance) bool {
	switch r.Action {
	case virtv1.StopRequest:
		return !stops(r, vmi)
	case virtv1.StartRequest:
		return vmi != nil && vmi.DeletionTimestamp == nil && !vmi.IsFinal()
	}
	return true
}

// stops says whether a request asks for the end of this instance.
func stops(r stateChange, vmi *virtv1.VirtualMachineInstance) bool {
	return r.Action == virtv1.StopRequest && vmi != nil && (r.UID == nil || *r.UID == vmi.UID)
}

func hasStart(requests []stateChange) bool {
	return len(requests) > 0 && requests[0].Action == virtv1.StartRequest
}

func startsPaused(requests []stateChange) bool {
	return hasStart(requests) && requests[0].Data[virtv1.StartRequestDataPausedKey] == virtv1.StartRequestDataPausedTrue
}

// byController marks the start that the controller itself asks for, after a failure.
const byController = "afterFailure"

func ownStart() stateChange {
	return stateChange{Action: virtv1.StartRequest, Data: map[string]string{byController: "true"}}
}

// forgiveFailures lets a machine start at once that a user asks to start or stop.
func (s *vmStep) forgiveFailures() {
	requests := s.vm.Status.StateChangeRequests
	if len(requests) > 0 && requests[0].Data[byController] == "" {
		s.vm.Status.StartFailure = nil
	}
}

// Back-off of machines that end before they run.
const (
	maxBackOff  = 300 * time.Second
	baseBackOff = max(10*time.Second, maxBackOff/30)
)

// backOff is how long to wait after the n-th failure in a row; jitter lies in [0,1) and adds up to half.
func backOff(n int, jitter float64) time.Duration {
	delay := float64(baseBackOff) * float64(n) * float64(n)
	delay += delay / 2 * jitter
	return time.Duration(math.Min(delay, float64(maxBackOff)))
}

// countFailure keeps count of starts that failed: instances that ended by themselves and never ran.
func (s *vmStep) countFailure() {
	status := &s.vm.Status
	strategy, err := s.vm.RunStrategy()
	switch {
	case err != nil || (strategy != virtv1.RunStrategyAlways && strategy != virtv1.RunStrategyRerunOnFailure && strategy != virtv1.RunStrategyOnce):
		status.StartFailure = nil
	case s.vmi == nil:
	case hasRun(s.vmi):
		status.StartFailure = nil
	case s.vmi.IsFinal() && s.vmi.DeletionTimestamp == nil:
		failures := 0
		if f := status.StartFailure; f != nil {
			if f.LastFailedVMIUID == s.vmi.UID {
				return
			}
			failures = f.ConsecutiveFailCount
		}
		failures++
		retry := metav1.NewTime(s.view.Now.Add(backOff(failures, s.view.Jitter)))
		status.StartFailure = &virtv1.VirtualMachineStartFailure{
			ConsecutiveFailCount: failures, LastFailedVMIUID: s.vmi.UID, RetryAfterTimestamp: &retry,
		}
	}
}

// hasRun says whether the guest ever ran.
func hasRun(vmi *virtv1.VirtualMachineInstance) bool {
	return vmi.Status.Phase == virtv1.Running || slices.ContainsFunc(vmi.Status.PhaseTransitionTimestamps,
		func(p virtv1.VirtualMachineInstancePhaseTransitionTimestamp) bool { return p.Phase == virtv1.Running })
}
