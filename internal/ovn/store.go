package ovn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"patchbay/internal/ovn/nb"
)

// Config says how a Store works.
type Config struct {
	Dial Dial
	// Gate keeps northd from acting on a database that is being rebuilt. Optional.
	Gate Gate
	// Interval is the least time between the starts of two transactions; northd 23.03 recomputes everything for each of
	// them. The first change after a quiet time is written at once. Default 50 ms.
	Interval time.Duration
	// Audit is how often the whole database is compared. Default 10 min.
	Audit time.Duration
	// Report is told when an owner's rows cannot be written, and with nil when they could after all. Optional.
	Report func(owner string, err error)
	Log    *slog.Logger
}

// Store holds what its users want and makes the database so. Users call Set and Delete at any time, from any goroutine;
// Run does the work.
type Store struct {
	config Config

	mu      sync.Mutex
	want    *wanted
	dirty   *dirt
	full    bool            // compare everything
	pending int             // sources that have not yet said all they want
	busy    bool            // a transaction is on its way
	writing map[string]bool // owners of what it writes
	failing map[string]failure
	settled chan struct{} // closed and replaced when there may be nothing left to do

	wake chan struct{}
}

// failure is an owner whose rows the database refused.
type failure struct {
	dirt  *dirt
	delay time.Duration
	next  time.Time
}

// NewStore makes a Store; Run starts it.
func NewStore(c Config) *Store {
	if c.Interval == 0 {
		c.Interval = 50 * time.Millisecond
	}
	if c.Audit == 0 {
		c.Audit = 10 * time.Minute
	}
	if c.Report == nil {
		c.Report = func(string, error) {}
	}
	return &Store{
		config: c, want: newWanted(), dirty: newDirt(), failing: map[string]failure{},
		settled: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// Set replaces all rows that an owner wants. The models belong to the Store from then on.
func (s *Store) Set(owner string, rows []nb.Row) { s.SetAll(map[string][]nb.Row{owner: rows}) }

// SetAll replaces all rows that some owners want. They are written in one transaction, so nobody sees some without the others.
func (s *Store) SetAll(rows map[string][]nb.Row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for owner, wanted := range rows {
		s.want.set(owner, wanted, s.dirty)
	}
	if !s.dirty.empty() {
		s.kick()
	}
}

// Delete forgets an owner; its rows vanish.
func (s *Store) Delete(owner string) { s.Set(owner, nil) }

// Expect announces a source of rows. Rows of an earlier run that nobody wants are removed only when every announced source
// has said all that it wants and called the returned function. Announce before Run.
func (s *Store) Expect() (complete func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pending--
		s.full = true
		s.kick()
	})
}

// Wait returns when the database is as wanted, or with what prevents it when the context ends.
func (s *Store) Wait(ctx context.Context) error {
	for {
		s.mu.Lock()
		clean := s.dirty.empty() && !s.full && !s.busy && len(s.failing) == 0
		settled := s.settled
		s.mu.Unlock()
		if clean {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the northbound database is not yet as wanted: %w", ctx.Err())
		case <-settled:
		}
	}
}

func (s *Store) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run connects, and connects again whenever the database is lost, until the context ends.
func (s *Store) Run(ctx context.Context) error {
	s.markFull()
	for ctx.Err() == nil {
		db, err := s.connect(ctx)
		if err != nil {
			return nil // the context ended
		}
		s.config.Log.Info("northbound database connected")
		err = s.serve(ctx, db)
		db.Close()
		s.markFull()
		if ctx.Err() == nil {
			s.config.Log.Warn("northbound database lost", "error", err)
			s.hold(ctx)
		}
	}
	return nil
}

func (s *Store) markFull() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = true
	s.dirty = newDirt()
	s.failing = map[string]failure{}
}

// connect dials until it succeeds. A server that comes back on a local socket is found within the first delay, long before
// northd tries again.
func (s *Store) connect(ctx context.Context) (Database, error) {
	delay := 20 * time.Millisecond
	for logged := false; ; {
		db, err := s.config.Dial(ctx, s.touch)
		if err == nil {
			return db, nil
		}
		if !logged && ctx.Err() == nil {
			s.config.Log.Warn("northbound database cannot be reached; trying again until it can", "error", err)
			logged = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(delay):
		}
		delay = min(delay*3/2, time.Second)
	}
}

// touch marks a row that changed in the database unless it is as wanted. Our own transactions come back here, too, and end
// here.
func (s *Store) touch(c Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := rowID{c.Table, c.uuid()}
	want, wanted := s.want.rows[id]
	switch {
	case nb.IsSingleton(c.Table):
		for id, want := range s.want.rows {
			if id.table == c.Table && (c.New == nil || len(nb.Differing(c.Table, want.model, c.New)) > 0) {
				s.dirty.rows[id] = want.owner
			}
		}
	case wanted && (c.New == nil || len(nb.Differing(c.Table, want.model, c.New)) > 0):
		s.dirty.rows[id] = want.owner
	case !wanted && c.New != nil && nb.Owned(id.uuid) && s.pending == 0:
		s.dirty.rows[id] = ""
	}
	s.touchMembers(c)
	if !s.dirty.empty() {
		s.kick()
	}
}

// touchMembers marks wanted links that vanished though both rows live on. Where membership keeps the member alive the
// member's own end says so.
func (s *Store) touchMembers(c Change) {
	if c.Old == nil || c.New == nil {
		return
	}
	for column, memberTable := range nb.Members[c.Table] {
		if nb.IsStrong(c.Table, column) {
			continue
		}
		have := map[string]bool{}
		for _, uuid := range nb.MemberUUIDs(c.New, column) {
			have[uuid] = true
		}
		for _, uuid := range nb.MemberUUIDs(c.Old, column) {
			e := edge{c.Table, c.uuid(), column, memberTable, uuid}
			if owner, wanted := s.want.edges[e]; wanted && !have[uuid] {
				s.dirty.edges[e] = owner
			}
		}
	}
}

// serve writes what is dirty until the connection or the context ends.
func (s *Store) serve(ctx context.Context, db Database) error {
	audit := time.NewTicker(s.config.Audit)
	defer audit.Stop()
	for {
		began := time.Now()
		if err := s.flush(ctx, db); err != nil {
			return err
		}
		pause := time.NewTimer(s.config.Interval - time.Since(began))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-db.Lost():
			return errors.New("connection closed")
		case <-pause.C:
		}
		retry := s.retryTimer()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-db.Lost():
			return errors.New("connection closed")
		case <-audit.C:
			s.mu.Lock()
			s.full = true
			s.mu.Unlock()
		case <-retry:
		case <-s.wake:
		}
	}
}

// retryTimer fires when the first refused owner may try again; it is nil when there is none.
func (s *Store) retryTimer() <-chan time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failing) == 0 {
		return nil
	}
	var due []time.Time
	for _, f := range s.failing {
		due = append(due, f.next)
	}
	return time.After(time.Until(slices.MinFunc(due, time.Time.Compare)))
}

// flush writes everything that is dirty in one transaction.
func (s *Store) flush(ctx context.Context, db Database) error {
	d := s.take(db)
	defer s.finish()
	owners, parts := d.byOwner()
	if err := s.write(ctx, db, owners, parts); err != nil {
		return err // what it was writing stays unknown until everything has been compared again
	}
	s.written()
	s.release()
	return nil
}

// write writes the dirt of some owners. When the database refuses it, the owners are halved until the one with the bad row
// stands alone, so that it stops its owner only.
func (s *Store) write(ctx context.Context, db Database, owners []string, parts map[string]*dirt) error {
	d := newDirt()
	for _, owner := range owners {
		d.add(parts[owner])
	}
	s.mu.Lock()
	ops := newPlan(s.want, db, d)
	s.mu.Unlock()
	err := s.apply(ctx, db, ops)
	switch {
	case lost(ctx, db):
		return fmt.Errorf("write to the northbound database: %w", errors.Join(err, ctx.Err()))
	case err == nil:
		s.succeeded(owners)
		return nil
	case len(owners) == 1:
		s.failed(owners[0], d, fmt.Errorf("write %s to the northbound database: %w", owners[0], err))
		return nil
	}
	half := len(owners) / 2
	if err := s.write(ctx, db, owners[:half], parts); err != nil {
		return err
	}
	return s.write(ctx, db, owners[half:], parts)
}

func (s *Store) apply(ctx context.Context, db Database, ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	began := time.Now()
	if err := db.Apply(ctx, ops); err != nil {
		return err
	}
	s.config.Log.Debug("northbound database written", "operations", len(ops), "took", time.Since(began))
	return nil
}

func lost(ctx context.Context, db Database) bool {
	select {
	case <-db.Lost():
		return true
	default:
		return ctx.Err() != nil
	}
}

// take empties the dirt.
func (s *Store) take(db Database) *dirt {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dirty
	s.dirty = newDirt()
	s.busy = true
	now := time.Now()
	for owner, f := range s.failing {
		if !f.next.After(now) {
			d.add(f.dirt)
			s.failing[owner] = failure{dirt: f.dirt, delay: f.delay, next: now.Add(f.delay)}
		}
	}
	if s.full {
		s.full = false
		survey(s.want, db, s.pending == 0, d)
	}
	spread(s.want, db, d)
	s.writing = d.owners()
	return d
}

func (s *Store) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	close(s.settled)
	s.settled = make(chan struct{})
}

func (s *Store) failed(owner string, d *dirt, err error) {
	s.mu.Lock()
	delay := min(max(2*s.failing[owner].delay, time.Second), time.Minute)
	s.failing[owner] = failure{dirt: d, delay: delay, next: time.Now().Add(delay)}
	s.mu.Unlock()
	s.config.Log.Error("rows refused; trying again later", "owner", owner, "error", err, "after", delay)
	s.config.Report(owner, err)
}

func (s *Store) succeeded(owners []string) {
	for _, owner := range owners {
		s.mu.Lock()
		_, failing := s.failing[owner]
		delete(s.failing, owner)
		s.mu.Unlock()
		if failing {
			s.config.Report(owner, nil)
		}
	}
}
