package ovn

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

// Fake is a Northbound database in memory that behaves like the server: transactions are all or nothing, references are
// checked, names stay unique, and rows that nothing refers to vanish. It is for tests.
type Fake struct {
	mu          sync.Mutex
	tables      map[string]map[string]model.Model
	connections []*fakeConnection

	// Refuse, when set, may refuse a transaction.
	Refuse func(ops []Op) error
	// Transactions counts those carried out.
	Transactions int
}

// NewFake makes an empty database.
func NewFake() *Fake { return &Fake{tables: map[string]map[string]model.Model{}} }

// Dial is for Config.Dial.
func (f *Fake) Dial(_ context.Context, changed func(Change)) (Database, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &fakeConnection{Fake: f, changed: changed, lost: make(chan struct{})}
	f.connections = append(f.connections, c)
	return c, nil
}

// Wipe empties the database and drops the connections, as when the server was started on a new file.
func (f *Fake) Wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tables = map[string]map[string]model.Model{}
	for _, c := range f.connections {
		close(c.lost)
	}
	f.connections = nil
}

type fakeConnection struct {
	*Fake
	changed func(Change)
	lost    chan struct{}
}

func (c *fakeConnection) Lost() <-chan struct{} { return c.lost }
func (c *fakeConnection) Close()                {}

// Row is a copy of a row.
func (f *Fake) Row(table, uuid string) model.Model {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.tables[table][uuid]; ok {
		return model.Clone(m)
	}
	return nil
}

// Has tells whether a row exists.
func (f *Fake) Has(table, uuid string) bool { return f.Row(table, uuid) != nil }

// Rows are copies of a table's rows.
func (f *Fake) Rows(table string) []model.Model {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rows []model.Model
	for _, uuid := range slices.Sorted(maps.Keys(f.tables[table])) {
		rows = append(rows, model.Clone(f.tables[table][uuid]))
	}
	return rows
}

// Named are the rows of a table with a name.
func (f *Fake) Named(table, name string) []string {
	var uuids []string
	for _, m := range f.Rows(table) {
		if n, named := nb.Name(m); named && n == name {
			uuids = append(uuids, nb.UUID(m))
		}
	}
	return uuids
}

// Apply carries out a transaction. Tests may use it to act as somebody else.
func (f *Fake) Apply(_ context.Context, ops []Op) error {
	changes, watchers, err := f.apply(ops)
	if err != nil {
		return err
	}
	for _, w := range watchers {
		for _, c := range changes {
			w.changed(c)
		}
	}
	return nil
}

func (f *Fake) apply(ops []Op) ([]Change, []*fakeConnection, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Refuse != nil {
		if err := f.Refuse(ops); err != nil {
			return nil, nil, err
		}
	}
	t := &fakeTransaction{before: f.tables, tables: map[string]map[string]model.Model{}}
	for table, rows := range f.tables {
		t.tables[table] = maps.Clone(rows)
	}
	for _, op := range ops {
		if err := t.do(op); err != nil {
			return nil, nil, fmt.Errorf("%s %s %s: %w", op.Kind, op.Table, op.UUID, err)
		}
	}
	t.collectGarbage()
	if err := t.check(); err != nil {
		return nil, nil, err
	}
	f.tables = t.tables
	f.Transactions++
	return t.changes(), slices.Clone(f.connections), nil
}

// Dump prints the whole database.
func (f *Fake) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return DumpDatabase(f.tables)
}

// DumpDatabase prints rows by table and UUID, for people and tests.
func DumpDatabase(tables map[string]map[string]model.Model) string {
	refs := map[string]nb.Ref{}
	for table, rows := range tables {
		for uuid, m := range rows {
			refs[uuid] = nb.Ref{Table: table, Key: key(m)}
		}
	}
	var all []nb.Row
	for table, rows := range tables {
		for uuid, m := range rows {
			row := nb.Row{Ref: refs[uuid], Model: m}
			for column := range nb.Members[table] {
				for _, child := range slices.Sorted(slices.Values(nb.MemberUUIDs(m, column))) {
					row.Links = append(row.Links, nb.Link{Parent: row.Ref, Column: column, Child: refs[child]})
				}
			}
			slices.SortStableFunc(row.Links, func(a, b nb.Link) int { return strings.Compare(a.Column, b.Column) })
			all = append(all, row)
		}
	}
	return nb.Dump(all)
}

// key is what names a row to people.
func key(m model.Model) string {
	if name, named := nb.Name(m); named {
		return name
	}
	return nb.ExternalIDs(m)["patchbay-key"]
}
