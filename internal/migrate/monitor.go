package migrate

import (
	"fmt"
	"time"
)

const (
	// firstDowntimeMS is the downtime in milliseconds that a migration begins with: another pass over a quiet guest's memory takes less
	// than that. It is doubled while passes do not bring the end, so that a busy guest still comes over within what is allowed; no more
	// often than raiseEvery, and while a pass takes long, every raiseAnyway.
	firstDowntimeMS = 10
	raiseEvery      = 400 * time.Millisecond
	raiseAnyway     = 3 * time.Second
	gigabyte        = 1000 * 1000 * 1000
)

// Progress is how far a copy is.
type Progress struct {
	Total, Remaining, Transferred int64 // bytes
	Active                        bool  // it is the guest's memory, and QEMU copies it
	Passes                        int64 // over the guest's memory that have begun
}

// Order is what to do about a migration. At most one is set.
type Order struct {
	Abort      string // give up, because
	PostCopy   bool   // let the guest run on the target at once
	Pause      bool   // stop the guest, so that nothing changes any more
	DowntimeMS int64  // let the guest stand still for longer
}

// Monitor watches over one copy. It has no clock of its own.
type Monitor struct {
	options Options
	began   time.Time
	budget  time.Duration

	least    int64     // bytes that remained at best
	moved    int64     // bytes transferred when something moved last
	progress time.Time // when that was
	downtime int64
	raised   time.Time // when the downtime was raised last, and in which pass
	pass     int64
	acted    bool // post-copy or pause was ordered
}

// NewMonitor begins to watch.
func NewMonitor(o Options, now time.Time) *Monitor {
	return &Monitor{options: o, began: now, progress: now, least: -1, raised: now, pass: 2, downtime: min(firstDowntimeMS, o.DowntimeMS)}
}

// Look takes the progress of a moment and says what to do.
func (m *Monitor) Look(now time.Time, p Progress) Order {
	m.note(now, p)
	if limit := time.Duration(m.options.ProgressTimeout) * time.Second; limit > 0 && now.Sub(m.progress) > limit {
		return Order{Abort: fmt.Sprintf("Live migration stuck for %d sec and has been aborted", m.options.ProgressTimeout)}
	}
	if m.budget > 0 && now.Sub(m.began) > m.budget {
		return m.late(p)
	}
	if p.Active && m.downtime < m.options.DowntimeMS && m.endless(now, p) {
		m.downtime, m.raised, m.pass = min(2*m.downtime, m.options.DowntimeMS), now, p.Passes
		return Order{DowntimeMS: m.downtime}
	}
	return Order{}
}

// endless says that the guest changes its memory faster than the present downtime can make up for. The first pass copies everything and
// says nothing about that.
func (m *Monitor) endless(now time.Time, p Progress) bool {
	if p.Passes < 2 {
		m.raised = now
		return false
	}
	since := now.Sub(m.raised)
	return p.Passes > m.pass && since >= raiseEvery || since >= raiseAnyway
}

func (m *Monitor) note(now time.Time, p Progress) {
	if m.budget == 0 && p.Total > 0 {
		gigabytes := (p.Total + gigabyte - 1) / gigabyte
		m.budget = time.Duration(gigabytes*m.options.CompletionPerGiB) * time.Second
	}
	if m.least < 0 || p.Remaining < m.least || p.Transferred > m.moved {
		m.least, m.moved, m.progress = p.Remaining, p.Transferred, now
	}
}

// late is for a migration that has used up its time.
func (m *Monitor) late(p Progress) Order {
	switch {
	case !m.acted && p.Active && m.options.PostCopy:
		m.acted = true
		return Order{PostCopy: true}
	case !m.acted && p.Active && m.options.Disrupt:
		m.acted = true
		m.budget *= 2
		return Order{Pause: true}
	case m.acted && m.options.PostCopy:
		return Order{} // the guest runs there: there is no way back
	}
	return Order{Abort: fmt.Sprintf("Live migration is not completed after %d sec and has been aborted", int64(m.budget/time.Second))}
}
