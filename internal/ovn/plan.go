package ovn

import (
	"cmp"
	"slices"

	"patchbay/internal/ovn/nb"
)

// spread adds to the dirt what a row that is about to come into being brings with it: its links, and the rows at their
// other ends that have been waiting for it. A new link wakes a waiting row likewise. The cost is that of what is new, not
// of what exists.
func spread(want *wanted, db Database, d *dirt) {
	var fresh []rowID
	add := func(id rowID) {
		row, wanted := want.rows[id]
		if _, known := d.rows[id]; wanted && !known && !db.Has(id.table, id.uuid) {
			d.rows[id] = row.owner
			fresh = append(fresh, id)
		}
	}
	for id := range d.rows {
		fresh = append(fresh, id)
	}
	for e := range d.edges {
		add(e.parentRow())
		add(e.childRow())
	}
	for len(fresh) > 0 {
		id := fresh[len(fresh)-1]
		fresh = fresh[:len(fresh)-1]
		if _, wanted := want.rows[id]; !wanted || db.Has(id.table, id.uuid) {
			continue
		}
		for e := range want.byRow[id.uuid] {
			d.edges[e] = want.edges[e]
			add(e.parentRow())
			add(e.childRow())
		}
	}
}

// plan is the difference between what is wanted and what a database has, as far as it is dirty.
type plan struct {
	want *wanted
	db   Database
	d    *dirt

	inserted map[rowID]bool
	deleted  map[rowID]bool
	ops      []Op
	members  map[memberKey][]string
}

// memberKey gathers the members that one operation adds to or removes from one column.
type memberKey struct {
	kind          OpKind
	table, parent string
	column        string
}

// newPlan computes the operations that clean the dirt, and touches nothing else.
func newPlan(want *wanted, db Database, d *dirt) []Op {
	p := &plan{
		want: want, db: db, d: d,
		inserted: map[rowID]bool{}, deleted: map[rowID]bool{}, members: map[memberKey][]string{},
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

// insert makes a row unless nothing would refer to it: the database would throw it away at once, so it waits for its
// parent, which brings it along.
func (p *plan) insert(id rowID, want wantedRow) {
	if p.inserted[id] || !p.willExist(id) {
		return
	}
	p.inserted[id] = true
	p.freeName(id, want)
	p.ops = append(p.ops, Op{Kind: Insert, Table: id.table, UUID: id.uuid, Model: want.model})
}

// willExist tells whether a row is there when the transaction is done.
func (p *plan) willExist(id rowID) bool {
	if p.inserted[id] || !p.deleted[id] && p.db.Has(id.table, id.uuid) {
		return true
	}
	_, wanted := p.want.rows[id]
	_, dirty := p.d.rows[id]
	return wanted && dirty && (nb.IsRoot(id.table) || p.hasParent(id))
}

func (p *plan) hasParent(id rowID) bool {
	for e := range p.want.byRow[id.uuid] {
		if e.child == id.uuid && nb.IsStrong(e.parentTable, e.column) && p.willExist(e.parentRow()) {
			return true
		}
	}
	return false
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
	parent, child := e.parentRow(), e.childRow()
	_, wanted := p.want.edges[e]
	switch {
	case wanted && p.willExist(parent) && p.willExist(child):
		p.member(Add, e)
	case !wanted && !p.deleted[parent] && p.db.Has(e.parentTable, e.parent) && p.db.Has(e.childTable, e.child):
		p.member(Remove, e)
	}
}

func (p *plan) member(kind OpKind, e edge) {
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
		members = slices.Compact(members)
		p.ops = append(p.ops, Op{Kind: key.kind, Table: key.table, UUID: key.parent, Column: key.column, Members: members})
	}
	slices.SortFunc(p.ops, func(a, b Op) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Table, b.Table), cmp.Compare(a.UUID, b.UUID), cmp.Compare(a.Column, b.Column))
	})
	return p.ops
}
