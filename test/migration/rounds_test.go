package migration

import (
	"testing"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
)

const rounds = 20

// stalled is a silence that no load explains: packets were thrown away until a switch forgot the connection.
const stalled = 25 * time.Second

// TestRounds moves a machine to and fro. One connection is open all the time.
func TestRounds(t *testing.T) {
	ns := newTenant(t)
	startMachine(t, ns, "mover", "node-1", live(onDisk))
	g := started(t, ns, "mover")
	c := startTalk(t, g)
	p := startPings(t, g)
	w := watch(t, ns)
	visits := map[string]int{}
	for n := range rounds {
		from, began := g.node(t), time.Now()
		c.longest()
		m := g.move(t, nil)
		reaches(t, m, virtv1.MigrationSucceeded)
		took := time.Since(began)
		c.goesOn(t)
		to := g.node(t)
		if to == from {
			t.Fatalf("migration %d: the guest is still on %s", n+1, from)
		}
		visits[to]++
		silence := c.longest()
		t.Logf("migration %d, to %s: %.1f s, longest time without an answer %v", n+1, to, took.Seconds(), silence.Round(time.Millisecond))
		if silence > stalled {
			t.Errorf("migration %d, to %s: the connection stood still for %v", n+1, to, silence)
		}
	}
	if visits["node-1"] != rounds/2 || visits["node-2"] != rounds/2 {
		t.Errorf("the guest went to %v", visits)
	}
	sent, back := p.stop(t)
	t.Logf("%d of %d pings came back", back, sent)
	if back == 0 {
		t.Error("no ping came back")
	}
	c.settle(t)
	w.alone(t, "mover")
}
