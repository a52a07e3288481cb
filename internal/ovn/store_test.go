package ovn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

// run starts a store and stops it with the test.
func run(t *testing.T, c Config) *Store {
	t.Helper()
	s := NewStore(c)
	start(t, s)
	return s
}

func start(t *testing.T, s *Store) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func wait(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
}

func config(dial Dial) Config {
	return Config{Dial: dial, Interval: time.Millisecond, Log: quiet()}
}

func group(name string) nb.Row {
	return nb.NewRow(nb.LoadBalancerGroupTable, name, &nb.LoadBalancerGroup{Name: name})
}

func balancer(name string, vips map[string]string) nb.Row {
	row := nb.NewRow(nb.LoadBalancerTable, name, &nb.LoadBalancer{Name: name, Vips: vips})
	return row.In(nb.Ref{Table: nb.LoadBalancerGroupTable, Key: "all"}, "load_balancer")
}

func want(t *testing.T, db Database, outlined string) {
	t.Helper()
	if diff := cmp.Diff(outlined, outline(db)); diff != "" {
		t.Fatalf("database (-want +got):\n%s", diff)
	}
}

func TestStoreWritesWhatOwnersWant(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		s := run(t, config(dial))
		see := connection(t, dial, func(Change) {})
		s.Set("pod/default/web", []nb.Row{portRow("node-1", "default_web")})
		wait(t, s)
		eventually(t, see, "")

		s.Set("node/node-1", []nb.Row{switchRow("node-1")})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\n")

		s.Set("node/node-2", []nb.Row{switchRow("node-2")})
		s.Set("pod/default/web", []nb.Row{portRow("node-2", "default_web")})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\nLogical_Switch node-2\n  has ports default_web\nLogical_Switch_Port default_web\n")

		s.Delete("node/node-2")
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n")
		s.Set("node/node-2", []nb.Row{switchRow("node-2")})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\nLogical_Switch node-2\n  has ports default_web\nLogical_Switch_Port default_web\n")

		s.Delete("pod/default/web")
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\nLogical_Switch node-2\n")
	})
}

// eventually waits until a connection other than the store's has seen what the store wrote.
func eventually(t *testing.T, db Database, outlined string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for outline(db) != outlined && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	want(t, db, outlined)
}

// somebodyElse changes the database behind the store's back.
func somebodyElse(t *testing.T, db Database, ops ...Op) {
	t.Helper()
	if err := db.Apply(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
}

func TestStoreRepairsWhatSomebodyElseChanged(t *testing.T) {
	ls, lsp, all := switchRow("node-1"), portRow("node-1", "default_web"), group("all")
	lb := balancer("web", map[string]string{"10.96.0.1:80": "10.0.0.1:80"})
	broken := nb.NewRow(nb.LoadBalancerTable, "web", &nb.LoadBalancer{Name: "web"})
	foreign := nb.Row{Ref: nb.Ref{Table: nb.LogicalSwitchTable, Key: "foreign"}, Model: &nb.LogicalSwitch{UUID: "11111111-1111-1111-1111-111111111111", Name: "mine"}}
	cases := map[string][]Op{
		"a port was deleted":              {member(Remove, ls, "ports", lsp)},
		"a switch was deleted":            {{Kind: Delete, Table: ls.Table, UUID: ls.UUID()}},
		"a column was changed":            {{Kind: Update, Table: lb.Table, UUID: lb.UUID(), Model: broken.Model, Columns: []string{"vips", "external_ids"}}},
		"a balancer was taken out":        {member(Remove, all, "load_balancer", lb)},
		"everything was deleted":          {{Kind: Delete, Table: lb.Table, UUID: lb.UUID()}, {Kind: Delete, Table: ls.Table, UUID: ls.UUID()}, {Kind: Delete, Table: all.Table, UUID: all.UUID()}},
		"somebody's own row is left":      {{Kind: Insert, Table: foreign.Table, UUID: nb.UUID(foreign.Model), Model: foreign.Model}},
		"a row that looks like ours goes": {insert(switchRow("node-9"))},
	}
	for name, ops := range cases {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, dial Dial, _ func()) {
				var db Database
				c := config(func(ctx context.Context, changed func(Change)) (Database, error) {
					d, err := dial(ctx, changed)
					db = d
					return d, err
				})
				s := run(t, c)
				s.Set("cluster", []nb.Row{switchRow("node-1"), group("all")})
				s.Set("service/web", []nb.Row{balancer("web", map[string]string{"10.96.0.1:80": "10.0.0.1:80"})})
				s.Set("pod/default/web", []nb.Row{portRow("node-1", "default_web")})
				wait(t, s)
				before := dump(db)
				if strings.Contains(name, "own row") {
					before = strings.Replace(before, "Logical_Switch node-1\n", "Logical_Switch mine\nLogical_Switch node-1\n", 1)
				}
				somebodyElse(t, db, ops...)
				deadline := time.Now().Add(10 * time.Second)
				for dump(db) != before && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond)
				}
				if diff := cmp.Diff(before, dump(db)); diff != "" {
					t.Errorf("not repaired (-before +after):\n%s", diff)
				}
			})
		})
	}
}

func TestStoreRebuildsAWipedDatabase(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, wipe func()) {
		var db atomic.Pointer[Database]
		gate := &fakeGate{}
		c := config(func(ctx context.Context, changed func(Change)) (Database, error) {
			d, err := dial(ctx, changed)
			if err == nil {
				db.Store(&d)
			}
			return d, err
		})
		c.Gate = gate
		s := run(t, c)
		s.Set("cluster", []nb.Row{switchRow("node-1"), group("all")})
		for i := range 50 {
			s.Set(fmt.Sprintf("pod/default/p%d", i), []nb.Row{portRow("node-1", fmt.Sprintf("default_p%d", i))})
		}
		wait(t, s)
		first := *db.Load()
		before, ids := dump(first), first.Row(nb.LogicalSwitchTable, switchRow("node-1").UUID()).(*nb.LogicalSwitch).Ports
		wipe()
		<-first.Lost()
		deadline := within(t)
		for *db.Load() == first {
			if deadline.Err() != nil {
				t.Fatal("the store does not connect again")
			}
			time.Sleep(time.Millisecond)
		}
		wait(t, s)
		after := *db.Load()
		if diff := cmp.Diff(before, dump(after)); diff != "" {
			t.Errorf("rebuilt database (-before +after):\n%s", diff)
		}
		again := after.Row(nb.LogicalSwitchTable, switchRow("node-1").UUID()).(*nb.LogicalSwitch).Ports
		slices.Sort(ids)
		slices.Sort(again)
		if diff := cmp.Diff(ids, again); diff != "" {
			t.Errorf("identities changed (-before +after):\n%s", diff)
		}
		if held, open := gate.state(); held == 0 || !open {
			t.Errorf("northd was held %d times and may write: %v; want held at least once and writing again", held, open)
		}
	})
}

type fakeGate struct {
	mu   sync.Mutex
	held int
	shut bool
}

func (g *fakeGate) Hold(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held++
	g.shut = true
	return nil
}

func (g *fakeGate) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

func (g *fakeGate) state() (held int, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held, !g.shut
}

func TestStorePrunesOnlyWhenEverySourceIsComplete(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		old := NewStore(config(dial))
		stop := start(t, old)
		old.Set("node/node-1", []nb.Row{switchRow("node-1")})
		old.Set("node/node-2", []nb.Row{switchRow("node-2")})
		old.Set("pod/a", []nb.Row{portRow("node-1", "default_a")})
		old.Set("pod/b", []nb.Row{portRow("node-1", "default_b")})
		wait(t, old)
		stop()

		s := NewStore(config(dial))
		nodes, pods := s.Expect(), s.Expect()
		start(t, s)
		see := connection(t, dial, func(Change) {})
		s.Set("node/node-1", []nb.Row{switchRow("node-1")})
		nodes()
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_a\n  has ports default_b\nLogical_Switch node-2\nLogical_Switch_Port default_a\nLogical_Switch_Port default_b\n")
		s.Set("pod/b", []nb.Row{portRow("node-1", "default_b")})
		pods()
		pods() // saying it twice is saying it once
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_b\nLogical_Switch_Port default_b\n")
	})
}

func TestStoreTakesNamesThatAreOurs(t *testing.T) {
	lsUUID, lspUUID := "22222222-2222-2222-2222-222222222222", "33333333-3333-3333-3333-333333333333"
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		see := connection(t, dial, func(Change) {})
		somebodyElse(t, see,
			Op{Kind: Insert, Table: nb.LogicalSwitchTable, UUID: lsUUID, Model: &nb.LogicalSwitch{UUID: lsUUID, Name: "node-1"}},
			Op{Kind: Insert, Table: nb.LogicalSwitchTable, UUID: lspUUID, Model: &nb.LogicalSwitch{UUID: lspUUID, Name: "theirs"}},
			Op{Kind: Insert, Table: nb.LogicalSwitchPortTable, UUID: lspUUID, Model: &nb.LogicalSwitchPort{UUID: lspUUID, Name: "default_web"}},
			Op{Kind: Add, Table: nb.LogicalSwitchTable, UUID: lspUUID, Column: "ports", Members: []string{lspUUID}})
		s := run(t, config(dial))
		s.Set("node/node-1", []nb.Row{switchRow("node-1")})
		s.Set("pod/default/web", []nb.Row{portRow("node-1", "default_web")})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_web\nLogical_Switch theirs\nLogical_Switch_Port default_web\n")
	})
}

func TestStoreSharesTheGlobalRow(t *testing.T) {
	uuid := "44444444-4444-4444-4444-444444444444"
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		see := connection(t, dial, func(Change) {})
		somebodyElse(t, see, Op{Kind: Insert, Table: nb.NBGlobalTable, UUID: uuid, Model: &nb.NBGlobal{UUID: uuid, Options: map[string]string{"northd_probe_interval": "5000", "mac_prefix": "ff"}}})
		s := run(t, config(dial))
		s.Set("cluster", []nb.Row{nb.NewRow(nb.NBGlobalTable, "", &nb.NBGlobal{Options: map[string]string{"mac_prefix": "0a:58:00"}})})
		wait(t, s)
		options := map[string]string{"northd_probe_interval": "5000", "mac_prefix": "0a:58:00"}
		deadline := time.Now().Add(10 * time.Second)
		var got map[string]string
		for time.Now().Before(deadline) && cmp.Diff(options, got) != "" {
			got = see.Row(nb.NBGlobalTable, uuid).(*nb.NBGlobal).Options
		}
		if diff := cmp.Diff(options, got); diff != "" {
			t.Errorf("options (-want +got):\n%s", diff)
		}
	})
}

func TestStoreWritesABurstAtOnceAndNothingTwice(t *testing.T) {
	f := NewFake()
	s := NewStore(config(f.Dial))
	for i := range 100 {
		s.Set(fmt.Sprintf("pod/p%d", i), []nb.Row{portRow("node-1", fmt.Sprintf("default_p%d", i))})
	}
	s.Set("node/node-1", []nb.Row{switchRow("node-1")})
	start(t, s)
	wait(t, s)
	if f.Transactions != 1 {
		t.Errorf("a burst took %d transactions, want 1", f.Transactions)
	}
	s.Set("node/node-1", []nb.Row{switchRow("node-1")})
	s.Set("pod/p7", []nb.Row{portRow("node-1", "default_p7")})
	wait(t, s)
	if f.Transactions != 1 {
		t.Errorf("saying the same again took a transaction")
	}
}

// TestStoreReadsWhatChangedOnly counts how many rows one more port looks at, beside 2,000 others.
func TestStoreReadsWhatChangedOnly(t *testing.T) {
	f := NewFake()
	reads := &atomic.Int64{}
	s := NewStore(config(func(ctx context.Context, changed func(Change)) (Database, error) {
		db, err := f.Dial(ctx, changed)
		return countingDatabase{db, reads}, err
	}))
	s.Set("node/node-1", []nb.Row{switchRow("node-1")})
	for i := range 2000 {
		s.Set(fmt.Sprintf("pod/p%d", i), []nb.Row{portRow("node-1", fmt.Sprintf("default_p%d", i))})
	}
	start(t, s)
	wait(t, s)
	reads.Store(0)
	s.Set("pod/new", []nb.Row{portRow("node-1", "default_new")})
	wait(t, s)
	if n := reads.Load(); n > 10 {
		t.Errorf("one more port made %d reads, want at most 10", n)
	}
}

type countingDatabase struct {
	Database
	reads *atomic.Int64
}

func (c countingDatabase) Row(table, uuid string) (m model.Model) {
	c.reads.Add(1)
	return c.Database.Row(table, uuid)
}

func (c countingDatabase) Has(table, uuid string) bool {
	c.reads.Add(1)
	return c.Database.Has(table, uuid)
}

func (c countingDatabase) Rows(table string) (rows []model.Model) {
	for _, m := range c.Database.Rows(table) {
		c.reads.Add(1)
		rows = append(rows, m)
	}
	return rows
}

func TestStoreStopsTheOwnerOfABadRowOnly(t *testing.T) {
	f := NewFake()
	f.Refuse = func(ops []Op) error {
		for _, op := range ops {
			if row, ok := op.Model.(*nb.LogicalSwitchPort); ok && row.Type == "bad" {
				return errors.New("constraint violation")
			}
		}
		return nil
	}
	reports := make(chan string, 10)
	c := config(f.Dial)
	c.Report = func(owner string, err error) { reports <- fmt.Sprint(owner, " ", err) }
	s := run(t, c)
	bad := portRow("node-1", "default_bad")
	bad.Model.(*nb.LogicalSwitchPort).Type = "bad"
	for i := range 8 {
		s.Set(fmt.Sprintf("pod/default/p%d", i), []nb.Row{portRow("node-1", fmt.Sprintf("default_p%d", i))})
	}
	s.Set("pod/default/bad", []nb.Row{bad})
	s.Set("node/node-1", []nb.Row{switchRow("node-1")})
	if got, want := <-reports, "pod/default/bad write pod/default/bad to the northbound database: constraint violation"; got != want {
		t.Errorf("got report %q, want %q", got, want)
	}
	deadline := within(t)
	for len(f.Rows(nb.LogicalSwitchPortTable)) != 8 && deadline.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if n := len(f.Rows(nb.LogicalSwitchPortTable)); n != 8 {
		t.Errorf("%d good ports exist, want 8", n)
	}
	s.Set("pod/default/bad", []nb.Row{portRow("node-1", "default_bad")})
	wait(t, s)
	if got, want := <-reports, "pod/default/bad <nil>"; got != want {
		t.Errorf("got report %q, want %q", got, want)
	}
}

// TestStoreConverges lets owners say things at random while somebody else breaks the database and the connection, and
// compares the end with a store that was told the end only.
func TestStoreConverges(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			f := NewFake()
			s := run(t, config(f.Dial))
			last := map[string]func() []nb.Row{}
			for range 300 {
				owner, rows := randomOwner(r)
				last[owner] = rows
				s.Set(owner, rows())
				switch r.IntN(20) {
				case 0:
					vandalise(f, r)
				case 1:
					wait(t, s)
				case 2:
					wait(t, s)
					f.Wipe()
				}
			}
			wait(t, s)
			fresh := NewFake()
			clean := NewStore(config(fresh.Dial))
			for owner, rows := range last {
				clean.Set(owner, rows())
			}
			start(t, clean)
			wait(t, clean)
			deadline := time.Now().Add(5 * time.Second)
			for f.Dump() != fresh.Dump() && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if diff := cmp.Diff(fresh.Dump(), f.Dump()); diff != "" {
				t.Errorf("after all that (-clean +got):\n%s", diff)
			}
		})
	}
}

func randomOwner(r *rand.Rand) (string, func() []nb.Row) {
	n := r.IntN(8)
	switch r.IntN(6) {
	case 0:
		return "cluster", func() []nb.Row { return []nb.Row{group("all")} }
	case 1:
		if n%4 == 0 {
			return fmt.Sprintf("node/%d", n), func() []nb.Row { return nil }
		}
		return fmt.Sprintf("node/%d", n), func() []nb.Row { return []nb.Row{switchRow(fmt.Sprintf("node-%d", n))} }
	case 2:
		vip := fmt.Sprintf("10.96.0.%d:80", r.IntN(9))
		return fmt.Sprintf("service/%d", n), func() []nb.Row {
			return []nb.Row{balancer(fmt.Sprintf("lb-%d", n), map[string]string{vip: ""})}
		}
	default:
		node, gone := r.IntN(8), r.IntN(3) == 0
		return fmt.Sprintf("pod/%d", n), func() []nb.Row {
			if gone {
				return nil
			}
			return []nb.Row{portRow(fmt.Sprintf("node-%d", node), fmt.Sprintf("default_p%d", n))}
		}
	}
}

// vandalise deletes a random switch or balancer.
func vandalise(f *Fake, r *rand.Rand) {
	table := []string{nb.LogicalSwitchTable, nb.LoadBalancerTable}[r.IntN(2)]
	if rows := f.Rows(table); len(rows) > 0 {
		uuid := nb.UUID(rows[r.IntN(len(rows))])
		_ = f.Apply(context.Background(), []Op{{Kind: Delete, Table: table, UUID: uuid}})
	}
}

// TestMembershipWaitsForBothEnds: somebody says that a port is in a group before either exists.
func TestMembershipWaitsForBothEnds(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		s := run(t, config(dial))
		see := connection(t, dial, func(Change) {})
		group := nb.NewRow(nb.PortGroupTable, "g", &nb.PortGroup{Name: "g"})
		port := portRow("node-1", "default_web")
		member := map[string][]nb.Row{"member": {nb.Membership(port.Ref).In(group.Ref, "ports")}}
		s.SetAll(member)
		s.SetAll(map[string][]nb.Row{"group": {group}, "node/node-1": {switchRow("node-1")}})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\nPort_Group g\n")
		s.Set("pod/default/web", []nb.Row{port})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\nPort_Group g\n  has ports default_web\n")
		s.Delete("pod/default/web")
		s.Set("pod/default/web", []nb.Row{portRow("node-1", "default_web")})
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\nPort_Group g\n  has ports default_web\n")
		s.Delete("member")
		wait(t, s)
		eventually(t, see, "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\nPort_Group g\n")
	})
}
