package nmstate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"patchbay/internal/agent/durable"
	"patchbay/internal/nmstate"
)

// Probe tells whether the node can still do what it must.
type Probe struct {
	Name string
	// Always says that the probe counts even when it failed before the change.
	Always bool
	Check  func(ctx context.Context) error
}

// Limits of a change; zero values are replaced by these.
const (
	defaultDeadline   = 480 * time.Second // of the whole change, until it is taken back
	defaultProbeTime  = 120 * time.Second // for each probe after the change
	probeAttempt      = 5 * time.Second   // for one attempt of a probe
	verifyAttempts    = 5
	rollBackTime      = time.Minute
	rollBackAttempts  = 5
	defaultRetryDelay = time.Second
)

// Enactor makes a node's network what a document says, or leaves it as it was.
type Enactor struct {
	Node *Node
	// File holds the checkpoint of a change that is not confirmed yet.
	File      string
	Probes    []Probe
	Deadline  time.Duration
	ProbeTime time.Duration
	Delay     time.Duration // between attempts to verify, and between attempts of a probe
}

func (e *Enactor) delay() time.Duration     { return orDefault(e.Delay, defaultRetryDelay) }
func (e *Enactor) probeTime() time.Duration { return orDefault(e.ProbeTime, defaultProbeTime) }

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Satisfied says whether the node has what the document desires.
func (e *Enactor) Satisfied(desired nmstate.State) (bool, error) {
	_, _, ops, err := e.plan(desired)
	return err == nil && len(ops) == 0, err
}

func (e *Enactor) plan(desired nmstate.State) (before nmstate.State, t nmstate.Target, ops []nmstate.Op, err error) {
	if before, err = e.Node.Observe(); err != nil {
		return before, t, nil, err
	}
	if t, err = nmstate.Merge(before, desired, e.Node.Host()); err != nil {
		return before, t, nil, err
	}
	return before, t, nmstate.Diff(before, t), nil
}

// Enact returns once the node has what the document desires and its probes pass. On an error the node is as before. A process
// that dies in between leaves the checkpoint, and Recover takes the change back.
func (e *Enactor) Enact(ctx context.Context, policy string, generation int64, desired nmstate.State) error {
	if _, err := e.Recover(ctx); err != nil {
		return err
	}
	before, target, ops, err := e.plan(desired)
	if err != nil || len(ops) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, orDefault(e.Deadline, defaultDeadline), errors.New("the time to confirm the change is over"))
	defer cancel()
	probes := e.choose(ctx)
	checkpoint := nmstate.NewCheckpoint(policy, generation, before, target)
	if err := e.write(checkpoint); err != nil {
		return err
	}
	e.Node.Log.Info("node network policy is applied", "policy", policy, "generation", generation, "changes", len(ops))
	err = e.applyAndVerify(ctx, desired)
	if err == nil {
		if err = e.probe(ctx, probes); err != nil {
			err = fmt.Errorf("rolling back desired state configuration: failed runnig probes after network changes: %w", err)
		}
	}
	if err != nil {
		return errors.Join(err, e.rollBack(ctx, checkpoint))
	}
	return e.forget()
}

// applyAndVerify repeats what the kernel undid on the way: a device that goes down loses addresses, an address takes its routes along.
func (e *Enactor) applyAndVerify(ctx context.Context, desired nmstate.State) error {
	var ops []nmstate.Op
	for attempt := range verifyAttempts {
		if attempt > 1 {
			if err := wait(ctx, e.delay()); err != nil {
				return err
			}
		}
		var err error
		if _, _, ops, err = e.plan(desired); err != nil {
			return err
		}
		if len(ops) == 0 {
			return nil
		}
		if err := e.Node.Apply(ctx, ops); err != nil {
			return err
		}
	}
	if _, _, ops, err := e.plan(desired); err != nil || len(ops) == 0 {
		return err
	}
	return &nmstate.Error{Kind: nmstate.KindVerification, Text: "the node does not keep these changes: " + nmstate.Describe(ops)}
}

// choose gives the probes that count after the change.
func (e *Enactor) choose(ctx context.Context) []Probe {
	var chosen []Probe
	for _, p := range e.Probes {
		if !p.Always {
			bounded, cancel := context.WithTimeout(ctx, probeAttempt)
			err := p.Check(bounded)
			cancel()
			if err != nil {
				e.Node.Log.Info("probe does not count: it fails before the change", "probe", p.Name, "error", err)
				continue
			}
		}
		chosen = append(chosen, p)
	}
	return chosen
}

func (e *Enactor) probe(ctx context.Context, probes []Probe) error {
	for _, p := range probes {
		if err := e.await(ctx, p); err != nil {
			return fmt.Errorf("probe %s: %w", p.Name, err)
		}
	}
	return nil
}

// await repeats a probe until it passes or its time is over.
func (e *Enactor) await(ctx context.Context, p Probe) error {
	ctx, cancel := context.WithTimeout(ctx, e.probeTime())
	defer cancel()
	for {
		bounded, end := context.WithTimeout(ctx, probeAttempt)
		err := p.Check(bounded)
		end()
		if err == nil {
			return nil
		}
		if wait(ctx, e.delay()) != nil {
			return err
		}
	}
}

// wait returns after a time, or with the context's cause.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Recover takes back a change that nobody confirmed, and tells which it was. It needs neither the API server nor the network.
func (e *Enactor) Recover(ctx context.Context) (*nmstate.Checkpoint, error) {
	data, err := os.ReadFile(e.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint of an unfinished network change: %w", err)
	}
	var c nmstate.Checkpoint
	if err := json.Unmarshal(data, &c); err != nil {
		e.Node.Log.Error("checkpoint set aside", "file", e.File, "error", err)
		return nil, e.setAside()
	}
	e.Node.Log.Warn("an unfinished network change is taken back", "policy", c.Policy, "generation", c.Generation)
	return &c, e.rollBack(ctx, c)
}

// rollBack makes the node what it was, also when the context has ended.
func (e *Enactor) rollBack(ctx context.Context, c nmstate.Checkpoint) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollBackTime)
	defer cancel()
	var failed error
	for attempt := range rollBackAttempts {
		if attempt > 1 && wait(ctx, e.delay()) != nil {
			break
		}
		now, err := e.Node.Observe()
		if err != nil {
			failed = err
			continue
		}
		ops := nmstate.Diff(now, c.Target(now))
		if len(ops) == 0 {
			e.Node.Log.Info("network change taken back", "policy", c.Policy, "generation", c.Generation)
			return e.forget()
		}
		failed = nil
		for _, op := range ops {
			// One thing that cannot be put back must not keep the others away.
			if err := e.Node.Apply(ctx, []nmstate.Op{op}); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	if failed == nil {
		failed = errors.New("the node does not keep what is put back")
	}
	e.Node.Log.Error("network change could not be taken back as a whole", "policy", c.Policy, "error", failed)
	return errors.Join(fmt.Errorf("roll back: %w", failed), e.setAside())
}

func (e *Enactor) write(c nmstate.Checkpoint) error {
	c.Taken = time.Now()
	data, err := json.Marshal(c)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(e.File), 0o700)
	}
	if err == nil {
		err = durable.Write(e.File, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the checkpoint before the network is changed: %w", err)
	}
	return nil
}

func (e *Enactor) forget() error {
	if err := os.Remove(e.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return nil
}

// setAside keeps a checkpoint for people to look at.
func (e *Enactor) setAside() error { return os.Rename(e.File, e.File+".failed") }
