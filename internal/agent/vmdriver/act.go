package vmdriver

import (
	"context"
	"errors"
	"time"

	"patchbay/internal/agent/vmstate"
)

// actLimit is how long QEMU or a launcher may take to carry out a request.
const actLimit = 5 * time.Second

// Times after which a failed start or attach is tried again: the first, doubled each time, up to the last.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 10 * time.Second
)

func (m *machine) act(ctx context.Context, o vmstate.Observed, actions []vmstate.Action) {
	for _, action := range actions {
		if err := m.actOnce(ctx, o, action); err != nil && ctx.Err() == nil {
			m.log.Warn("an action on the virtual machine failed", "action", string(action), "error", err)
		}
	}
}

func (m *machine) actOnce(ctx context.Context, o vmstate.Observed, action vmstate.Action) error {
	_, d := m.current()
	limited, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	switch action {
	case vmstate.Start:
		m.begin(ctx, takeUp{driver: m.driver, log: m.log, vmi: o.VMI, pod: m.podUID, accel: m.accel}.start)
	case vmstate.Attach:
		m.begin(ctx, takeUp{driver: m.driver, log: m.log, vmi: o.VMI, pod: m.podUID, accel: m.accel}.attach)
	case vmstate.PowerButton:
		return d.pressPowerButton(limited)
	case vmstate.Reset:
		return d.finishReboot(limited)
	case vmstate.GiveUpReboot:
		return d.giveUpReboot(limited)
	case vmstate.SetLinks:
		return d.setLinks(limited, o.VMI)
	case vmstate.Kill:
		return m.kill(limited, d)
	case vmstate.SyncNICs:
		m.beginPlugging(ctx, o.VMI, d)
	case vmstate.Release:
		m.release()
	default:
		return m.actMigration(limited, o, action)
	}
	return nil
}

// kill ends QEMU through its launcher, which also works when the monitor does not answer.
func (m *machine) kill(ctx context.Context, d *domain) error {
	if m.task != nil {
		m.task.cancel()
	}
	if d != nil {
		d.markKilled()
	}
	if m.dir == nil {
		return errors.New("the launcher's run directory is gone")
	}
	_, err := m.dir.Stop(ctx)
	return err
}

// killOrphan ends a guest whose instance was removed from the API together with its finalizers.
func (m *machine) killOrphan(ctx context.Context) {
	if m.dir == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	if _, err := m.dir.Stop(ctx); err == nil {
		m.log.Info("ended the guest of an instance that is gone")
	}
}

// task is a start or an attach under way.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
	domain *domain // results, readable after done
	err    error
}

// begin runs work beside the machine's loop, so that a guest may be deleted while it starts.
func (m *machine) begin(ctx context.Context, work func(context.Context) (*domain, error)) {
	if m.task != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &task{cancel: cancel, done: make(chan struct{})}
	m.task = t
	m.failure = nil
	m.driver.running.Go(func() {
		defer close(t.done)
		t.domain, t.err = work(ctx)
	})
}

// collectTask takes the result of a task that has finished.
func (m *machine) collectTask() {
	if m.task == nil {
		return
	}
	select {
	case <-m.task.done:
	default:
		return
	}
	t := m.task
	m.task = nil
	t.cancel()
	if t.err == nil {
		m.failed = 0
		m.setDomain(t.domain)
		t.domain.run(m.nudge)
		return
	}
	m.failed++
	m.failure = describeFailure(t.err, m.failed)
	if !m.failure.Final && !errors.Is(t.err, context.Canceled) {
		m.log.Warn("cannot take up the virtual machine; trying again", "error", t.err, "attempt", m.failed)
	}
}

func describeFailure(err error, attempt int) *vmstate.Failure {
	f := &vmstate.Failure{Message: err.Error()}
	var later *notYet
	var final *finalError
	if !errors.As(err, &later) && errors.As(err, &final) {
		f.Final = true
		return f
	}
	delay := firstRetry << min(attempt-1, 10)
	f.Retry = now().Add(min(delay, lastRetry))
	return f
}

// finalError is a failure that trying again would not mend: of the specification, or of the network's set-up.
type finalError struct{ error }

func (f *finalError) Unwrap() error { return f.error }

func final(err error) error { return &finalError{err} }
