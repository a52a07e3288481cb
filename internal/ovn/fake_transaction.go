package ovn

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

// fakeTransaction is a working copy of the fake's tables. Rows are replaced, never changed.
type fakeTransaction struct {
	before, tables map[string]map[string]model.Model
}

func (t *fakeTransaction) do(op Op) error {
	row, exists := t.tables[op.Table][op.UUID]
	switch op.Kind {
	case Insert:
		if _, before := t.before[op.Table][op.UUID]; exists || before {
			return errors.New("duplicate uuid")
		}
		if t.tables[op.Table] == nil {
			t.tables[op.Table] = map[string]model.Model{}
		}
		t.tables[op.Table][op.UUID] = model.Clone(op.Model)
	case Delete:
		delete(t.tables[op.Table], op.UUID)
	case Update:
		if exists {
			row = model.Clone(row)
			for _, column := range op.Columns {
				nb.SetColumn(row, op.Model, column)
			}
			t.tables[op.Table][op.UUID] = row
		}
	case Add, Remove:
		if exists {
			t.tables[op.Table][op.UUID] = withMembers(row, op)
		}
	}
	return nil
}

func withMembers(row model.Model, op Op) model.Model {
	row = model.Clone(row)
	var members []string
	for _, uuid := range nb.MemberUUIDs(row, op.Column) {
		if !slices.Contains(op.Members, uuid) {
			members = append(members, uuid)
		}
	}
	if op.Kind == Add {
		members = append(members, op.Members...)
	}
	nb.SetReferences(row, op.Column, members)
	return row
}

// collectGarbage removes rows outside the root tables that nothing refers to, and weak references to rows that are gone.
func (t *fakeTransaction) collectGarbage() {
	for again := true; again; {
		again = false
		alive := map[rowID]bool{}
		t.each(func(id rowID, m model.Model) {
			for _, r := range nb.References(id.table, m) {
				if nb.IsStrong(id.table, r.Column) {
					alive[rowID{r.Table, r.UUID}] = true
				}
			}
		})
		t.each(func(id rowID, _ model.Model) {
			if !nb.IsRoot(id.table) && !alive[id] {
				delete(t.tables[id.table], id.uuid)
				again = true
			}
		})
	}
	t.each(func(id rowID, m model.Model) { t.dropWeak(id, m) })
}

func (t *fakeTransaction) dropWeak(id rowID, m model.Model) {
	left := map[string][]string{}
	dropped := map[string]bool{}
	for _, r := range nb.References(id.table, m) {
		if _, exists := t.tables[r.Table][r.UUID]; exists || nb.IsStrong(id.table, r.Column) {
			left[r.Column] = append(left[r.Column], r.UUID)
		} else {
			dropped[r.Column] = true
		}
	}
	for column := range dropped {
		m = model.Clone(m)
		nb.SetReferences(m, column, left[column])
		t.tables[id.table][id.uuid] = m
	}
}

func (t *fakeTransaction) check() error {
	var errs []error
	names := map[[2]string]string{}
	t.each(func(id rowID, m model.Model) {
		for _, r := range nb.References(id.table, m) {
			if _, exists := t.tables[r.Table][r.UUID]; !exists {
				errs = append(errs, fmt.Errorf("referential integrity violation: %s %s column %s refers to %s, which does not exist", id.table, id.uuid, r.Column, r.UUID))
			}
		}
		name, _ := nb.Name(m)
		if other, taken := names[[2]string{id.table, name}]; taken && nb.UniqueName(id.table) {
			errs = append(errs, fmt.Errorf("constraint violation: %s %s and %s are both named %q", id.table, id.uuid, other, name))
		}
		names[[2]string{id.table, name}] = id.uuid
	})
	for table, rows := range t.tables {
		if nb.IsSingleton(table) && len(rows) > 1 {
			errs = append(errs, fmt.Errorf("constraint violation: %s has more than one row", table))
		}
	}
	return errors.Join(errs...)
}

func (t *fakeTransaction) each(do func(rowID, model.Model)) {
	for table, rows := range t.tables {
		for uuid, m := range rows {
			do(rowID{table, uuid}, m)
		}
	}
}

func (t *fakeTransaction) changes() []Change {
	var changes []Change
	t.each(func(id rowID, m model.Model) {
		old := t.before[id.table][id.uuid]
		if old == nil || !model.Equal(old, m) {
			changes = append(changes, Change{Table: id.table, Old: old, New: m})
		}
	})
	for table, rows := range t.before {
		for uuid, m := range rows {
			if _, exists := t.tables[table][uuid]; !exists {
				changes = append(changes, Change{Table: table, Old: m})
			}
		}
	}
	return changes
}
