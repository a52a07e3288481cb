package migrate

import (
	"testing"
	"time"
)

// TestDowntimeIsRaised gives the downtime only to guests that need it.
func TestDowntimeIsRaised(t *testing.T) {
	type look struct {
		after  time.Duration // since the beginning
		passes int64
		want   int64 // the downtime that is ordered; 0: none
	}
	ms := time.Millisecond
	cases := map[string][]look{
		"the first pass may take its time": {{0, 1, 0}, {5 * time.Second, 1, 0}, {10 * time.Second, 1, 0}, {10*time.Second + 400*ms, 2, 0}},
		"looked at often":                  {{0, 1, 0}, {1 * ms, 1, 0}, {2 * ms, 2, 0}, {3 * ms, 3, 0}, {4 * ms, 4, 0}, {500 * ms, 5, 20}},
		"passes do not bring the end": {{0, 1, 0}, {400 * ms, 3, 20}, {800 * ms, 5, 40}, {1200 * ms, 7, 80}, {1600 * ms, 9, 160},
			{2000 * ms, 11, 300}, {2400 * ms, 13, 0}},
		"long passes": {{0, 1, 0}, {time.Second, 2, 0}, {2 * time.Second, 2, 0}, {3 * time.Second, 2, 20}, {4 * time.Second, 2, 0},
			{5 * time.Second, 3, 40}, {6 * time.Second, 3, 0}, {8 * time.Second, 3, 80}},
	}
	for name, looks := range cases {
		t.Run(name, func(t *testing.T) {
			began := time.Unix(1000, 0)
			m := NewMonitor(Options{DowntimeMS: 300}, began)
			for _, l := range looks {
				p := Progress{Total: 1 << 30, Remaining: 1 << 20, Active: true, Passes: l.passes}
				if got := m.Look(began.Add(l.after), p); got != (Order{DowntimeMS: l.want}) {
					t.Errorf("after %s, in pass %d: %+v, want downtime %d", l.after, l.passes, got, l.want)
				}
			}
		})
	}
}
