package ovn

import (
	"cmp"
	"slices"

	"patchbay/internal/ovn/nb"
)

// plan is the difference between what is wanted and what a database has, as far as it is dirty.
type plan struct {
	want *wanted
	db   Database

	inserted map[rowID]bool
	deleted  map[rowID]bool
	ops      []Op
	members  map[memberKey][]string
	done     map[edge]bool
}

// memberKey gathers the members that one operation adds to or removes from one column.
type memberKey struct {
	kind          OpKind
	table, parent string
	column        string
}

// newPlan computes the operations that clean the dirt. It reads only the rows that are dirty and, when a row comes into
// being, those linked to it; so a burst costs what changed and not what exists.
func newPlan(want *wanted, db Database, d *dirt) []Op {
	p := &plan{
		want: want, db: db,
		inserted: map[rowID]bool{}, deleted: map[rowID]bool{}, members: map[memberKey][]string{}, done: map[edge]bool{},
	}
	for id := range d.rows {
		p.row(id)
	}
	for e := range d.edges {
		p.edge(e)
	}
	return p.operations()
}

func (p *plan) row(id rowID) {
	if nb.IsSingleton(id.table) {
		p.singleton(id)
		return
	}
	want, wanted := p.want.rows[id]
	if !wanted {
		if nb.IsRoot(id.table) && p.db.Has(id.table, id.uuid) {
			p.delete(id)
		}
		return
	}
	have := p.db.Row(id.table, id.uuid)
	if have == nil {
		p.insert(id, want)
		return
	}
	if columns := nb.Differing(id.table, want.model, have); len(columns) > 0 {
		p.freeName(id, want)
		p.ops = append(p.ops, Op{Kind: Update, Table: id.table, UUID: id.uuid, Model: want.model, Columns: columns})
	}
}

// singleton updates the only row of a table under whatever identity it has.
func (p *plan) singleton(id rowID) {
	want, wanted := p.want.rows[id]
	if !wanted {
		return
	}
	rows := p.db.Rows(id.table)
	if len(rows) == 0 {
		p.insert(id, want)
		return
	}
	if columns := nb.Differing(id.table, want.model, rows[0]); len(columns) > 0 {
		merged := nb.Merge(id.table, want.model, rows[0])
		p.ops = append(p.ops, Op{Kind: Update, Table: id.table, UUID: nb.UUID(rows[0]), Model: merged, Columns: columns})
	}
}

func (p *plan) delete(id rowID) {
	if !p.deleted[id] {
		p.deleted[id] = true
		p.ops = append(p.ops, Op{Kind: Delete, Table: id.table, UUID: id.uuid})
	}
}

// insert makes a row, its links, and the rows below it that could not exist without it. A row that nothing would refer to
// waits for its parent: the database would throw it away at once.
func (p *plan) insert(id rowID, want wantedRow) {
	if p.inserted[id] || !nb.IsRoot(id.table) && !p.hasParent(id) {
		return
	}
	p.inserted[id] = true
	p.freeName(id, want)
	p.ops = append(p.ops, Op{Kind: Insert, Table: id.table, UUID: id.uuid, Model: want.model})
	for e := range p.want.byRow[id.uuid] {
		if e.parent == id.uuid {
			if child := (rowID{e.childTable, e.child}); !p.exists(child) {
				if want, wanted := p.want.rows[child]; wanted {
					p.insert(child, want)
				}
			}
		}
		p.edge(e)
	}
}

func (p *plan) hasParent(id rowID) bool {
	for e := range p.want.byRow[id.uuid] {
		if e.child == id.uuid && nb.IsStrong(e.parentTable, e.column) && p.willExist(rowID{e.parentTable, e.parent}) {
			return true
		}
	}
	return false
}

// exists tells whether a row is there when the transaction is done, as far as it has been planned.
func (p *plan) exists(id rowID) bool {
	return p.inserted[id] || !p.deleted[id] && p.db.Has(id.table, id.uuid)
}

// willExist counts a wanted row that can be made, too.
func (p *plan) willExist(id rowID) bool {
	if p.exists(id) {
		return true
	}
	_, wanted := p.want.rows[id]
	return wanted && (nb.IsRoot(id.table) || p.hasParent(id))
}

// freeName takes a name from a row that is not the wanted one. Names are unique in the database in some tables, and ours
// to keep unique in the others.
func (p *plan) freeName(id rowID, want wantedRow) {
	name, named := nb.Name(want.model)
	if !named || name == "" {
		return
	}
	for _, uuid := range p.db.Named(id.table, name) {
		other := rowID{id.table, uuid}
		if uuid == id.uuid || p.deleted[other] {
			continue
		}
		if nb.IsRoot(id.table) {
			p.delete(other)
		} else {
			p.unlink(other)
		}
	}
}

// unlink takes a row out of every column that keeps it alive. Only the rare collision of names comes here, so it may scan.
func (p *plan) unlink(id rowID) {
	p.deleted[id] = true
	for table, columns := range nb.Members {
		for column, memberTable := range columns {
			if memberTable != id.table {
				continue
			}
			for _, parent := range p.db.Rows(table) {
				if slices.Contains(nb.MemberUUIDs(parent, column), id.uuid) {
					p.member(Remove, edge{table, nb.UUID(parent), column, id.table, id.uuid})
				}
			}
		}
	}
}

func (p *plan) edge(e edge) {
	if p.done[e] {
		return
	}
	parent, child := rowID{e.parentTable, e.parent}, rowID{e.childTable, e.child}
	_, wanted := p.want.edges[e]
	switch {
	case wanted && p.willExist(parent) && p.willExist(child):
		p.member(Add, e)
		p.insertIfMissing(parent)
		p.insertIfMissing(child)
	case !wanted && !p.deleted[parent] && p.db.Has(e.parentTable, e.parent) && p.db.Has(e.childTable, e.child):
		p.member(Remove, e)
	}
}

func (p *plan) insertIfMissing(id rowID) {
	if want, wanted := p.want.rows[id]; wanted && !p.exists(id) {
		p.insert(id, want)
	}
}

func (p *plan) member(kind OpKind, e edge) {
	p.done[e] = true
	key := memberKey{kind, e.parentTable, e.parent, e.column}
	p.members[key] = append(p.members[key], e.child)
}

// operations is the transaction, in an order that does not depend on the order of maps.
func (p *plan) operations() []Op {
	for key, members := range p.members {
		if key.kind == Remove && p.deleted[rowID{key.table, key.parent}] {
			continue
		}
		slices.Sort(members)
		p.ops = append(p.ops, Op{Kind: key.kind, Table: key.table, UUID: key.parent, Column: key.column, Members: members})
	}
	slices.SortFunc(p.ops, func(a, b Op) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Table, b.Table), cmp.Compare(a.UUID, b.UUID), cmp.Compare(a.Column, b.Column))
	})
	return p.ops
}
