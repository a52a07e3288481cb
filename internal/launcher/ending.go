package launcher

import (
	"time"

	"patchbay/internal/launcher/protocol"
)

const (
	// powerdownEvery is how often the power button is pressed: a guest that is still booting misses the first time.
	powerdownEvery = 5 * time.Second
	// quitTime is how long QEMU may take to flush its disks and end, before it is killed.
	quitTime = 10 * time.Second
)

// ending is the state of bringing QEMU to an end.
type ending struct {
	grace, kill *time.Timer
	repeat      *time.Ticker
	stopping    bool
	wasCutOff   bool
	answer      []chan<- protocol.Response
}

// powerdown presses the power button and starts the clock.
func (e *ending) powerdown(m *machine) {
	if e.stopping {
		return
	}
	e.grace = time.NewTimer(m.grace)
	e.repeat = time.NewTicker(powerdownEvery)
	if m.grace > 0 {
		m.powerdown()
	}
}

func (e *ending) powerdownAgain(m *machine) {
	if !e.stopping {
		m.powerdown()
	}
}

// cutOff ends QEMU because the guest did not.
func (e *ending) cutOff(m *machine) {
	e.wasCutOff = !e.stopping
	e.stop(m)
}

// stop tells QEMU to quit and kills it when it does not.
func (e *ending) stop(m *machine) {
	if e.stopping {
		return
	}
	e.stopping = true
	m.quit()
	e.kill = time.AfterFunc(quitTime, m.kill)
}

// again and late are when to press the power button again, and when the guest's time is up. They never come before powerdown.
func (e *ending) again() <-chan time.Time {
	if e.repeat == nil {
		return nil
	}
	return e.repeat.C
}

func (e *ending) late() <-chan time.Time {
	if e.grace == nil {
		return nil
	}
	return e.grace.C
}

func (e *ending) close() {
	for _, timer := range []*time.Timer{e.grace, e.kill} {
		if timer != nil {
			timer.Stop()
		}
	}
	if e.repeat != nil {
		e.repeat.Stop()
	}
}
