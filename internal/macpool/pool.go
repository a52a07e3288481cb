package macpool

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// Errors of Take, in the words that users know.
var (
	ErrFull  = errors.New("the range is full")
	ErrTaken = errors.New("failed to allocate requested mac address")
)

// Owner is an object whose NICs hold addresses.
type Owner struct{ Kind, Namespace, Name string }

func (o Owner) String() string { return o.Kind + "/" + o.Namespace + "/" + o.Name }

// Wish is the address that a NIC of an owner should hold.
type Wish struct {
	NIC string
	// MAC is the address that the user wrote; it need not lie in the range. Zero picks one of the range.
	MAC Address
}

// Config is what a Pool is made of.
type Config struct {
	Range Range
	// Random picks where in a range to begin: a number below its argument.
	Random func(uint64) uint64
}

// Pool hands out addresses. All methods may be called at the same time; each takes a time that depends on the NICs of one owner
// only, not on how many addresses are held.
type Pool struct {
	random func(uint64) uint64

	mu     sync.Mutex
	within Range
	cursor Address
	strict bool
	used   *used
	shared map[Address]int     // holders beyond the first
	owners map[Owner][]holding // what each owner holds
	queue  []promise           // of what is not known to be stored, oldest first
	enough int                 // how long the queue may grow until it is tidied
	last   time.Time           // the newest stamp
}

// holding is one address of one NIC. A zero stamp says that it is stored; otherwise a request of that time was promised it, or
// was allowed to drop it.
type holding struct {
	nic   string
	mac   Address
	stamp time.Time
}

type promise struct {
	owner Owner
	stamp time.Time
}

// New makes a pool in which nothing is held.
func New(c Config) *Pool {
	p := &Pool{random: c.Random, used: newUsed(), shared: map[Address]int{}, owners: map[Owner][]holding{}}
	p.used.add(Reserved)
	p.SetRange(c.Range)
	return p
}

// Range is where addresses are picked from at present.
func (p *Pool) Range() Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.within
}

// SetRange makes later picks come from another range, beginning anywhere in it. What is held stays held.
func (p *Pool) SetRange(r Range) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r != p.within {
		p.within, p.cursor = r, r.First+Address(p.random(uint64(r.Last-r.First)+1))
	}
}

// SetStrict decides whether Take refuses a wished address that another owner holds.
func (p *Pool) SetStrict(strict bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strict = strict
}

// maxSkew is how far ahead of the clock a stored stamp may be and still count: clocks are set back, but nobody's stamp may move
// all later ones into a far future, where no promise would ever be overdue.
const maxSkew = time.Hour

// Stamp is the time of a request, later than all earlier stamps and than the one that is stored with the owner.
func (p *Pool) Stamp(now, stored time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	latest := now.Add(maxSkew)
	for _, earlier := range []time.Time{p.last, stored} {
		if !now.After(earlier) && earlier.Before(latest) {
			now = earlier.Add(1)
		}
	}
	p.last = now
	return now
}

// Take promises addresses to an owner's NICs, in the order of the wishes, and marks what its NICs hold besides for release. It
// takes effect when Align sees the owner stored with this stamp. When it fails nothing has changed.
func (p *Pool) Take(owner Owner, stamp time.Time, wishes []Wish) ([]Address, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := slices.Clone(p.owners[owner])
	granted := make([]Address, 0, len(wishes))
	for _, w := range wishes {
		a, err := p.grant(owner, w)
		if err != nil {
			for _, a := range granted {
				p.release(a)
			}
			return nil, err
		}
		granted = append(granted, a)
	}
	after := make([]holding, 0, len(wishes))
	for i, w := range wishes {
		after = append(after, holding{nic: w.NIC, mac: granted[i], stamp: stamp})
	}
	for _, h := range before {
		if slices.ContainsFunc(after, func(n holding) bool { return n.nic == h.nic && n.mac == h.mac }) {
			p.release(h.mac) // the same holding twice is one
			continue
		}
		after = append(after, holding{nic: h.nic, mac: h.mac, stamp: stamp})
	}
	p.put(owner, after)
	if len(after) > 0 {
		p.promise(owner, stamp)
	}
	return granted, nil
}

// Preview picks as Take does and promises nothing. What it gives to a dry run may be given again.
func (p *Pool) Preview(owner Owner, wishes []Wish) ([]Address, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var granted []Address
	var err error
	for _, w := range wishes {
		var a Address
		if a, err = p.grant(owner, w); err != nil {
			break
		}
		granted = append(granted, a)
	}
	for _, a := range granted {
		p.release(a)
	}
	return granted, err
}

// Align tells what is stored of an owner: the stamp that is stored with it and what its NICs hold. A request that is younger than
// the stamp may still be under way, so its promises stay. A missing owner is one without NICs and with a zero stamp.
func (p *Pool) Align(owner Owner, stored time.Time, nics map[string]Address) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var after []holding
	missing := map[string]bool{}
	for nic := range nics {
		missing[nic] = true
	}
	for _, h := range p.owners[owner] {
		a, present := nics[h.nic]
		switch {
		case present && a == h.mac:
			delete(missing, h.nic)
			if !h.stamp.After(stored) {
				h.stamp = time.Time{}
			}
			after = append(after, h)
		case h.stamp.After(stored):
			after = append(after, h)
		default:
			p.release(h.mac)
		}
	}
	for nic := range missing {
		p.hold(nics[nic])
		after = append(after, holding{nic: nic, mac: nics[nic]})
	}
	p.put(owner, after)
}

// Overdue lists the owners with a promise that was made by the given time and that Align has neither confirmed nor taken back.
// Look at what is stored of them and call Align with a stamp that is not before that time.
func (p *Pool) Overdue(by time.Time) []Owner {
	p.mu.Lock()
	defer p.mu.Unlock()
	var overdue []Owner
	var open []promise
	n := 0
	for ; n < len(p.queue) && !p.queue[n].stamp.After(by); n++ {
		if q := p.queue[n]; p.promised(q) {
			open = append(open, q)
			overdue = append(overdue, q.owner)
		}
	}
	p.queue = append(open, p.queue[n:]...)
	return overdue
}

// minQueue is how long the queue may be before it is worth looking at.
const minQueue = 1024

// promise queues a promise. Now and then the queue forgets what is settled, so that it is never much longer than what is open.
func (p *Pool) promise(owner Owner, stamp time.Time) {
	if p.queue = append(p.queue, promise{owner, stamp}); len(p.queue) > p.enough {
		p.queue = slices.DeleteFunc(p.queue, func(q promise) bool { return !p.promised(q) })
		p.enough = 2*len(p.queue) + minQueue
	}
}

func (p *Pool) promised(q promise) bool {
	return slices.ContainsFunc(p.owners[q.owner], func(h holding) bool { return h.stamp.Equal(q.stamp) })
}

// Held is how many holdings there are.
func (p *Pool) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, all := range p.owners {
		n += len(all)
	}
	return n
}

// grant holds a wished address, or the next free one.
func (p *Pool) grant(owner Owner, w Wish) (Address, error) {
	if w.MAC != 0 {
		if p.strict && p.takenFrom(owner, w.MAC) {
			return 0, ErrTaken
		}
		p.hold(w.MAC)
		return w.MAC, nil
	}
	a, ok := p.next(p.cursor, p.within.Last)
	if !ok {
		a, ok = p.next(p.within.First, p.cursor)
	}
	if !ok {
		return 0, ErrFull
	}
	if p.cursor = a + 1; !p.within.contains(p.cursor) {
		p.cursor = p.within.First
	}
	p.hold(a)
	return a, nil
}

// next is the first free address for a NIC from one address up to another.
func (p *Pool) next(from, to Address) (Address, bool) {
	for a := p.used.nextFree(from); a <= to; a = p.used.nextFree(a) {
		if !a.multicast() {
			return a, true
		}
		a = Address(a.firstOctet()+1) << lowOctets // every other first octet is a NIC's
		if a.firstOctet() == 0 {
			break // that was the last octet
		}
	}
	return 0, false
}

// takenFrom says that others than the owner hold an address.
func (p *Pool) takenFrom(owner Owner, a Address) bool {
	if !p.used.has(a) {
		return false
	}
	own := 0
	for _, h := range p.owners[owner] {
		if h.mac == a {
			own++
		}
	}
	return 1+p.shared[a] > own
}

func (p *Pool) hold(a Address) {
	if p.used.has(a) {
		p.shared[a]++
		return
	}
	p.used.add(a)
}

func (p *Pool) release(a Address) {
	switch n := p.shared[a]; n {
	case 0:
		p.used.remove(a)
	case 1:
		delete(p.shared, a)
	default:
		p.shared[a] = n - 1
	}
}

func (p *Pool) put(owner Owner, all []holding) {
	if len(all) == 0 {
		delete(p.owners, owner)
		return
	}
	p.owners[owner] = all
}
