package macpool

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"
)

// world is an API server with machines, requests that have been admitted and not stored yet, and a pool that may crash.
type world struct {
	t       *testing.T
	random  *rand.Rand
	now     time.Time
	pool    *Pool
	within  Range
	stored  map[Owner]machine
	waiting []request // admitted
	unseen  []Owner   // changed in store, not yet told to the pool
}

type machine struct {
	stamp time.Time
	nics  map[string]Address
}

type request struct {
	owner Owner
	machine
	created bool // by this request
}

func (w *world) restart() {
	w.waiting, w.unseen = nil, nil // their answers are lost with the process
	w.pool = New(Config{Range: w.within, Random: w.random.Uint64N})
	for o, m := range w.stored {
		w.pool.Align(o, m.stamp, m.nics)
	}
}

// admit lets a machine be created, or changed: some NICs stay, some go, some come.
func (w *world) admit() {
	o := owner(fmt.Sprint(w.random.IntN(40)))
	before, exists := w.stored[o]
	var wishes []Wish
	for nic, a := range before.nics {
		if w.random.IntN(3) > 0 {
			wishes = append(wishes, Wish{NIC: nic, MAC: a})
		}
	}
	for range w.random.IntN(3) {
		if nic := fmt.Sprint("n", w.random.IntN(1000)); before.nics[nic] == 0 {
			wishes = append(wishes, Wish{NIC: nic})
		}
	}
	stamp := w.pool.Stamp(w.now, before.stamp)
	got, err := w.pool.Take(o, stamp, wishes)
	if err != nil {
		return
	}
	r := request{owner: o, machine: machine{stamp, map[string]Address{}}, created: !exists}
	for i, wish := range wishes {
		r.nics[wish.NIC] = got[i]
	}
	w.waiting = append(w.waiting, r)
}

// store stores or refuses the request that has waited longest. A conflict is refused, as the API server does.
func (w *world) store() {
	if len(w.waiting) == 0 {
		return
	}
	r := w.waiting[0]
	w.waiting = w.waiting[1:]
	now, exists := w.stored[r.owner]
	if w.random.IntN(3) == 0 || exists == r.created || exists && now.stamp.After(r.stamp) || exists && w.conflicts(now, r) {
		return
	}
	w.stored[r.owner] = r.machine
	w.unseen = append(w.unseen, r.owner)
}

// conflicts: the machine was changed since the request read it; only requests that wish for exactly what is there may win.
func (w *world) conflicts(now machine, r request) bool {
	for nic, a := range r.nics {
		if had, is := now.nics[nic]; is && had != a {
			return true
		}
	}
	return false
}

func (w *world) remove() {
	for o := range w.stored {
		delete(w.stored, o)
		w.unseen = append(w.unseen, o)
		return
	}
}

// see tells the pool of a change, late.
func (w *world) see() {
	if len(w.unseen) == 0 {
		return
	}
	o := w.unseen[0]
	w.unseen = w.unseen[1:]
	m := w.stored[o]
	w.pool.Align(o, m.stamp, m.nics)
}

func (w *world) heal(by time.Time) {
	for _, o := range w.pool.Overdue(by) {
		w.pool.Align(o, by, w.stored[o].nics)
	}
}

// check: no address is stored twice.
func (w *world) check(step int) {
	w.t.Helper()
	who := map[Address]string{}
	for o, m := range w.stored {
		for nic, a := range m.nics {
			if other := who[a]; other != "" {
				w.t.Fatalf("step %d: %s is held by %s and by %s/%s", step, a, other, o, nic)
			}
			who[a] = fmt.Sprint(o, "/", nic)
		}
	}
}

// settled: once everything is seen and overdue promises are looked after, the pool holds exactly what is stored.
func (w *world) settled(step int) {
	w.t.Helper()
	for len(w.unseen) > 0 {
		w.see()
	}
	w.waiting = nil
	w.now = w.now.Add(time.Hour)
	w.heal(w.now)
	if open := w.pool.Overdue(w.now); len(open) > 0 {
		w.t.Fatalf("step %d: still overdue: %v", step, open)
	}
	count := 0
	for o, m := range w.stored {
		count += len(m.nics)
		held := map[string]Address{}
		for _, h := range w.pool.owners[o] {
			held[h.nic] = h.mac
		}
		if !maps.Equal(held, m.nics) {
			w.t.Fatalf("step %d: %s holds %v, stored %v", step, o, held, m.nics)
		}
	}
	if w.pool.Held() != count || len(w.pool.queue) != 0 {
		w.t.Fatalf("step %d: %d held and %d promises, %d stored", step, w.pool.Held(), len(w.pool.queue), count)
	}
}

// No address is given twice and none is lost, whatever is created, changed, refused and deleted, and whenever the pool crashes.
func TestNothingIsDoubledOrLost(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := &world{
			t: t, random: random, now: at(1_000_000), stored: map[Owner]machine{},
			within: within(t, "02:00:00:00:00:00", "02:00:00:00:00:ff"),
		}
		w.restart()
		for step := range 4000 {
			w.now = w.now.Add(time.Duration(random.IntN(1000)) * time.Millisecond)
			switch n := random.IntN(100); {
			case n < 40:
				w.admit()
			case n < 70:
				w.store()
			case n < 78:
				w.remove()
			case n < 97:
				w.see()
			case n < 98:
				w.heal(w.now.Add(-5 * time.Minute))
			case n < 99:
				w.settled(step)
			default:
				w.restart()
			}
			w.check(step)
		}
		w.settled(-1)
	}
}
