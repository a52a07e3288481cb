package ovn

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

func switchRow(name string) nb.Row {
	return nb.NewRow(nb.LogicalSwitchTable, name, &nb.LogicalSwitch{Name: name})
}

func portRow(parent, name string) nb.Row {
	row := nb.NewRow(nb.LogicalSwitchPortTable, name, &nb.LogicalSwitchPort{Name: name, Addresses: []string{"0a:58:00:00:00:01 10.0.0.1"}})
	return row.In(nb.Ref{Table: nb.LogicalSwitchTable, Key: parent}, "ports")
}

func insert(row nb.Row) Op {
	return Op{Kind: Insert, Table: row.Table, UUID: row.UUID(), Model: row.Model}
}

func member(kind OpKind, parent nb.Row, column string, child nb.Row) Op {
	return Op{Kind: kind, Table: parent.Table, UUID: parent.UUID(), Column: column, Members: []string{child.UUID()}}
}

func dump(db Database) string {
	tables := map[string]map[string]model.Model{}
	for _, table := range nb.Tables() {
		tables[table] = map[string]model.Model{}
		for _, m := range db.Rows(table) {
			tables[table][nb.UUID(m)] = m
		}
	}
	return DumpDatabase(tables)
}

// TestDatabaseContract says what a Store may rely on.
func TestDatabaseContract(t *testing.T) {
	ls, other := switchRow("node-1"), switchRow("node-2")
	lsp := portRow("node-1", "default_web")
	group := nb.NewRow(nb.LoadBalancerGroupTable, "all", &nb.LoadBalancerGroup{Name: "all"})
	twin := nb.NewRow(nb.LogicalSwitchPortTable, "twin", &nb.LogicalSwitchPort{Name: "default_web"})
	using := nb.NewRow(nb.LogicalSwitchTable, "using", &nb.LogicalSwitch{Name: "using", LoadBalancerGroup: []string{group.UUID()}})
	lb := nb.NewRow(nb.LoadBalancerTable, "lb", &nb.LoadBalancer{Name: "lb"})
	moved := nb.NewRow(nb.LogicalSwitchPortTable, "default_web", &nb.LogicalSwitchPort{Addresses: []string{"unknown"}})

	steps := []struct {
		name   string
		ops    []Op
		refuse string
		want   string
	}{
		{name: "a row that nothing refers to vanishes", ops: []Op{insert(ls), insert(lsp)},
			want: "Logical_Switch node-1\n"},
		{name: "a member lives", ops: []Op{insert(lsp), member(Add, ls, "ports", lsp)},
			want: "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\n"},
		{name: "a member twice is a member once", ops: []Op{member(Add, ls, "ports", lsp)},
			want: "Logical_Switch node-1\n  has ports default_web\nLogical_Switch_Port default_web\n"},
		{name: "an identity cannot be used twice", ops: []Op{insert(ls)}, refuse: "duplicate uuid"},
		{name: "port names are unique", ops: []Op{insert(twin), member(Add, ls, "ports", twin)}, refuse: "constraint violation"},
		{name: "a refused transaction does nothing", ops: []Op{insert(other), insert(ls)}, refuse: "duplicate uuid"},
		{name: "references must exist", ops: []Op{insert(using)}, refuse: "referential integrity violation"},
		{name: "references and weak members", ops: []Op{insert(using), insert(group), insert(lb), member(Add, group, "load_balancer", lb)},
			want: "Load_Balancer lb\nLoad_Balancer_Group all\n  has load_balancer lb\nLogical_Switch node-1\n  has ports default_web\nLogical_Switch using\nLogical_Switch_Port default_web\n"},
		{name: "what is referred to cannot be deleted", ops: []Op{{Kind: Delete, Table: group.Table, UUID: group.UUID()}}, refuse: "referential integrity violation"},
		{name: "a deleted row leaves its groups", ops: []Op{{Kind: Delete, Table: lb.Table, UUID: lb.UUID()}},
			want: "Load_Balancer_Group all\nLogical_Switch node-1\n  has ports default_web\nLogical_Switch using\nLogical_Switch_Port default_web\n"},
		{name: "columns are written alone", ops: []Op{{Kind: Update, Table: lsp.Table, UUID: lsp.UUID(), Model: moved.Model, Columns: []string{"addresses"}}},
			want: "Load_Balancer_Group all\nLogical_Switch node-1\n  has ports default_web\nLogical_Switch using\nLogical_Switch_Port default_web\n"},
		{name: "a row moves between columns", ops: []Op{insert(other), member(Remove, ls, "ports", lsp), member(Add, other, "ports", lsp)},
			want: "Load_Balancer_Group all\nLogical_Switch node-1\nLogical_Switch node-2\n  has ports default_web\nLogical_Switch using\nLogical_Switch_Port default_web\n"},
		{name: "members die with their parent", ops: []Op{{Kind: Delete, Table: other.Table, UUID: other.UUID()}},
			want: "Load_Balancer_Group all\nLogical_Switch node-1\nLogical_Switch using\n"},
	}
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		db := connection(t, dial, func(Change) {})
		for _, s := range steps {
			err := db.Apply(context.Background(), s.ops)
			switch {
			case s.refuse != "" && (err == nil || !strings.Contains(err.Error(), s.refuse)):
				t.Fatalf("%s: got error %v, want one that says %q", s.name, err, s.refuse)
			case s.refuse == "" && err != nil:
				t.Fatalf("%s: %v", s.name, err)
			case s.refuse == "":
				if diff := cmp.Diff(s.want, outline(db)); diff != "" {
					t.Fatalf("%s (-want +got):\n%s", s.name, diff)
				}
			}
		}
	})
}

// outline is a dump without columns.
func outline(db Database) string {
	var out strings.Builder
	for line := range strings.Lines(dump(db)) {
		if table, rest, ok := strings.Cut(strings.TrimPrefix(line, "  has in "), ": "); ok && strings.HasPrefix(line, "  has in ") {
			_, name, _ := strings.Cut(rest, " ")
			out.WriteString("  has " + table + " " + name)
		} else if !strings.HasPrefix(line, "  ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestDatabaseReadsWhatItWrote(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		changes := make(chan Change, 100)
		db := connection(t, dial, func(c Change) { changes <- c })
		ls, lsp := switchRow("node-1"), portRow("node-1", "default_web")
		if err := db.Apply(context.Background(), []Op{insert(ls), insert(lsp), member(Add, ls, "ports", lsp)}); err != nil {
			t.Fatal(err)
		}
		if got := db.Named(nb.LogicalSwitchTable, "node-1"); !slices.Equal(got, []string{ls.UUID()}) {
			t.Errorf("switches named node-1: %v, want %s", got, ls.UUID())
		}
		if got := db.Named(nb.LogicalSwitchPortTable, "default_web"); !slices.Equal(got, []string{lsp.UUID()}) {
			t.Errorf("ports named default_web: %v, want %s", got, lsp.UUID())
		}
		if got := db.Named(nb.LogicalSwitchTable, "node-9"); len(got) != 0 {
			t.Errorf("switches named node-9: %v, want none", got)
		}
		if differing := nb.Differing(lsp.Table, lsp.Model, db.Row(lsp.Table, lsp.UUID())); len(differing) > 0 {
			t.Errorf("columns %v are not as written", differing)
		}
		if !db.Has(ls.Table, ls.UUID()) || db.Has(ls.Table, lsp.UUID()) {
			t.Error("Has does not tell which row is in which table")
		}
		seen := map[string]bool{}
		for len(seen) < 2 {
			select {
			case c := <-changes:
				seen[c.uuid()] = true
			case <-within(t).Done():
				t.Fatalf("changes reported for %v only, want the switch and the port", seen)
			}
		}
	})
}

func TestDatabaseIsLostWithItsServer(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, wipe func()) {
		db := connection(t, dial, func(Change) {})
		wipe()
		select {
		case <-db.Lost():
		case <-within(t).Done():
			t.Fatal("the connection does not notice that its server is gone")
		}
		again := connection(t, dial, func(Change) {})
		if got := dump(again); got != "" {
			t.Errorf("a wiped database has rows:\n%s", got)
		}
	})
}
