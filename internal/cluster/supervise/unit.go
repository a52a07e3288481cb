// Package supervise starts processes in the order of their dependencies, watches them, and starts them again. A supervisor may be
// killed at any time: its processes live on, their state is in files, and the next supervisor adopts them. The package knows
// nothing about what the processes do.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Unit is one thing to keep running or, without a Command, one step to do.
type Unit struct {
	Name string // unique, "node-1/kubelet"; also the state file's name, with the slash as a dash
	Node string // the node it belongs to; empty for the control plane
	// Command is the program (an absolute path) and its arguments. A unit without one is a step: it is ready once Prepare succeeded.
	Command []string
	Env     []string // the whole environment
	After   []string // units that must be ready before this one starts
	// FirstAfter are further units that must be ready before it starts for the first time; later it can do without them.
	FirstAfter []string
	// Within runs a function on a thread inside the process's namespaces; nil stands for the supervisor's own.
	Within func(func() error) error
	// Prepare runs before every start. It must be repeatable.
	Prepare func(context.Context) error
	// Started runs when the process was started or adopted, and again until it succeeds. It must be repeatable.
	Started func(context.Context) error
	// Probe tells whether the process does its work; nil means that running is enough.
	Probe func(context.Context) error
	// Grace is how long the process has to stop after SIGTERM.
	Grace time.Duration
}

func (u Unit) isStep() bool { return len(u.Command) == 0 }

// Phase is where a unit is in its life.
type Phase string

const (
	Waiting  Phase = "Waiting"  // for the units named in After
	Starting Phase = "Starting" // it runs; its probe has not succeeded yet
	Ready    Phase = "Ready"    // it runs and its probe succeeded
	Failing  Phase = "Failing"  // it runs and was ready; its probe fails
	Backoff  Phase = "Backoff"  // it ended or could not be started; the next try is due
	Stopped  Phase = "Stopped"  // by an orderly stop
)

// State is what is known of a unit. It is kept in a file, so that it can be read without the supervisor.
type State struct {
	Name     string   `json:"name"`
	Node     string   `json:"node,omitempty"`
	Phase    Phase    `json:"phase"`
	Command  []string `json:"command,omitempty"`
	Process  *Process `json:"process,omitempty"`
	Adopted  bool     `json:"adopted,omitempty"`  // started by an earlier supervisor
	Restarts int      `json:"restarts"`           // starts after the first one
	Failures int      `json:"failures,omitempty"` // preparations in a row that failed
	LastExit string   `json:"lastExit,omitempty"` // how the process ended the last time
	Message  string   `json:"message,omitempty"`  // why it is not ready
	Log      string   `json:"log,omitempty"`
	// Since is when the phase began.
	Since time.Time `json:"since"`
}

// checkUnits finds mistakes in a list of units.
func checkUnits(units []Unit) error {
	position := make(map[string]int, len(units))
	var errs []error
	for i, u := range units {
		if _, ok := position[u.Name]; ok {
			errs = append(errs, fmt.Errorf("unit %s is there twice", u.Name))
		}
		position[u.Name] = i
		for _, name := range slices.Concat(u.After, u.FirstAfter) {
			// Only earlier units may be named, which excludes circles.
			if _, ok := position[name]; !ok || name == u.Name {
				errs = append(errs, fmt.Errorf("unit %s waits for %s, which is not listed before it", u.Name, name))
			}
		}
	}
	return errors.Join(errs...)
}

// delays between the end of a process and its next start.
const (
	firstDelay = 200 * time.Millisecond
	longDelay  = 10 * time.Second
	// steady is how long a process must have been running for its end to count as the first again.
	steady = 30 * time.Second
)

// nextDelay doubles the delay up to a bound; a process that ran steadily starts from the beginning.
func nextDelay(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= steady {
		return firstDelay
	}
	return min(2*last, longDelay)
}

// stopSignal is what asks a process to end.
const stopSignal = syscall.SIGTERM
