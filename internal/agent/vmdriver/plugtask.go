package vmdriver

import (
	"context"
	"errors"
	"slices"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/vmstate"
)

// notYetNews is how long a network may keep a card waiting before people are told.
const notYetNews = 15 * time.Second

// plugTask is a plugger under way, and how the last ones ended.
type plugTask struct {
	cancel context.CancelFunc
	done   chan struct{} // nil: none is under way
	err    error         // readable after done

	failed  int
	since   time.Time // of the first failure in a row
	failure *vmstate.Failure
	seen    plugNews // when failure happened
}

// plugNews is what makes it worth while to try again at once.
type plugNews struct {
	wanted   []string // by the instance
	networks []string // that the pod is attached to
	released int      // cards that QEMU said are gone
}

func (n plugNews) equal(o plugNews) bool {
	return slices.Equal(n.wanted, o.wanted) && n.released == o.released && slices.Equal(n.networks, o.networks)
}

func (m *machine) plugNews(vmi *virtv1.VirtualMachineInstance) plugNews {
	n := plugNews{}
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		n.wanted = append(n.wanted, i.Name+" "+string(i.State)+" "+vmstate.AttachmentName(vmi, i.Name))
	}
	if pod, ok := m.driver.Pods.Get(m.podUID); ok {
		for _, i := range pod.Interfaces {
			n.networks = append(n.networks, i.Name+" "+i.Attachment)
		}
	}
	if _, d := m.current(); d != nil {
		n.released = d.describe().Released
	}
	return n
}

// beginPlugging has the guest's cards follow the instance.
func (m *machine) beginPlugging(ctx context.Context, vmi *virtv1.VirtualMachineInstance, d *domain) {
	if m.plug.done != nil || d == nil {
		return
	}
	pod, ok := m.driver.Pods.Get(m.podUID)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	m.plug.cancel, m.plug.done = cancel, done
	m.plug.seen = m.plugNews(vmi)
	work := plugger{driver: m.driver, d: d, vmi: vmi.DeepCopy(), accel: m.accel, pod: pod}
	m.driver.running.Go(func() {
		defer m.nudge()
		defer close(done)
		m.plug.err = work.run(ctx)
	})
}

// collectPlugging takes the result of a plugger that has finished.
func (m *machine) collectPlugging() {
	if m.plug.done == nil {
		return
	}
	select {
	case <-m.plug.done:
	default:
		return
	}
	err := m.plug.err
	m.plug.cancel()
	m.plug.done = nil
	if err == nil {
		m.plug = plugTask{}
		return
	}
	if m.plug.failed == 0 {
		m.plug.since = now()
	}
	m.plug.failed++
	m.plug.failure = &vmstate.Failure{Retry: now().Add(min(firstRetry<<min(m.plug.failed-1, 10), lastRetry))}
	var later *notYet
	if !errors.As(err, &later) || now().Sub(m.plug.since) > notYetNews {
		m.plug.failure.Message = err.Error()
		m.log.Warn("cannot change the guest's network cards; trying again", "error", err, "attempt", m.plug.failed)
	}
}

// plugFailure is why the last attempt failed. It need not be waited out when something has changed since.
func (m *machine) plugFailure(vmi *virtv1.VirtualMachineInstance) *vmstate.Failure {
	if f := m.plug.failure; f != nil && m.plug.done == nil && !m.plug.seen.equal(m.plugNews(vmi)) {
		f.Retry = time.Time{}
	}
	return m.plug.failure
}

// stopPlugging ends a plugger and waits for it.
func (m *machine) stopPlugging() {
	if m.plug.done != nil {
		m.plug.cancel()
		<-m.plug.done
	}
	m.plug = plugTask{}
}
