package vmdriver

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/client"
	"patchbay/internal/qemu"
)

// machine is one instance on this node. Its goroutine observes, steps and acts in turn; everything that is not under mu is the
// goroutine's own.
type machine struct {
	driver *Driver
	key    types.NamespacedName
	log    *slog.Logger
	nudges chan struct{} // holds a token when there may be something new

	uid      types.UID // of the instance that this machine is
	unlisted bool      // the instance exists, but not in the cache
	dir      *client.RunDir
	podUID   types.UID        // that dir is of
	accel    qemu.Accelerator // that the pod was given
	task     *task
	plug     plugTask
	failed   int // tasks that failed in a row
	failure  *vmstate.Failure
	ended    *vmstate.Ended
	written  *written
	// sending and receiving are this node's part of a migration; nil: it has none.
	sending   *sender
	receiving *receiver

	mu     sync.Mutex
	vmi    *virtv1.VirtualMachineInstance // as last observed
	domain *domain                        // nil while not attached
}

func newMachine(d *Driver, key types.NamespacedName) *machine {
	return &machine{
		driver: d,
		key:    key,
		log:    d.Log.With("vmi", key.String()),
		nudges: make(chan struct{}, 1),
	}
}

// nudge has the machine look again soon.
func (m *machine) nudge() {
	select {
	case m.nudges <- struct{}{}:
	default:
	}
}

// run works until the machine is over on this node or ctx ends.
func (m *machine) run(ctx context.Context) {
	defer m.release()
	for ctx.Err() == nil {
		wake, done := m.turn(ctx)
		if done {
			m.release()
			if m.driver.forget(m) {
				return
			}
			continue
		}
		m.wait(ctx, wake)
	}
}

// wait returns at the next nudge, the end of a task, wake (if any) or the end of ctx.
func (m *machine) wait(ctx context.Context, wake time.Time) {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer := time.NewTimer(time.Until(wake))
		defer timer.Stop()
		alarm = timer.C
	}
	var finished <-chan struct{}
	if m.task != nil {
		finished = m.task.done
	}
	select {
	case <-m.nudges:
	case <-finished:
	case <-alarm:
	case <-ctx.Done():
	}
}

// turn observes, decides and acts once.
func (m *machine) turn(ctx context.Context) (wake time.Time, done bool) {
	m.collectTask()
	m.collectReceived()
	m.collectPlugging()
	m.collectDomain()
	o, err := m.observe(ctx)
	switch {
	case errors.Is(err, errGone):
		m.killOrphan(ctx)
		m.startOver()
		return time.Time{}, true
	case err != nil:
		m.log.Warn("cannot observe the virtual machine", "error", err)
		return now().Add(retryObserve), false
	}
	r := vmstate.Step(o)
	if retry := m.write(ctx, o.VMI, r); !retry.IsZero() {
		r.Wake = soonest(r.Wake, retry)
	}
	if m.unlisted && !r.Done {
		r.Wake = soonest(r.Wake, now().Add(lookUnlisted))
	}
	m.act(ctx, o, r.Actions)
	if r.Done {
		m.driver.forgetGift(o.VMI.UID)
	}
	return r.Wake, r.Done
}

const (
	retryObserve = time.Second
	// lookUnlisted is how often an instance is looked at that no watch reports.
	lookUnlisted = 5 * time.Second
)

func soonest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// release lets go of everything that this process holds of the machine. The guest runs on.
func (m *machine) release() {
	m.forgetSend()
	m.forgetReceive()
	if m.task != nil {
		m.task.cancel()
		<-m.task.done
		if m.task.domain != nil {
			m.task.domain.close()
		}
		m.task = nil
	}
	m.stopPlugging()
	if d := m.setDomain(nil); d != nil {
		d.close()
	}
	m.closeDir()
}

// startOver forgets the instance, so that another of the same name may come.
func (m *machine) startOver() {
	m.release()
	m.uid, m.failed, m.failure, m.ended, m.written = "", 0, nil, nil, nil
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vmi = nil
}

func (m *machine) closeDir() {
	if m.dir != nil {
		m.dir.Close()
	}
	m.dir, m.podUID, m.accel = nil, "", ""
}

// setDomain replaces the domain and returns the old one.
func (m *machine) setDomain(d *domain) *domain {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.domain
	m.domain = d
	return old
}

// current is the instance and the domain as others may see them.
func (m *machine) current() (*virtv1.VirtualMachineInstance, *domain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vmi, m.domain
}
