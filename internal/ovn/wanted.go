package ovn

import (
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

// edge is a link by identity: child is a member of a column of parent.
type edge struct {
	parentTable, parent, column, childTable, child string
}

func newEdge(l nb.Link) edge {
	return edge{l.Parent.Table, l.Parent.UUID(), l.Column, l.Child.Table, l.Child.UUID()}
}

// rowID is a row by identity.
type rowID struct{ table, uuid string }

func (e edge) parentRow() rowID { return rowID{e.parentTable, e.parent} }
func (e edge) childRow() rowID  { return rowID{e.childTable, e.child} }

// wantedRow is a row somebody wants.
type wantedRow struct {
	owner string
	model model.Model
}

// wanted is what all owners want together. A row or link that two owners want belongs to the one who said so last.
type wanted struct {
	rows   map[rowID]wantedRow
	edges  map[edge]string // owner
	byRow  map[string]map[edge]struct{}
	owners map[string]holding
}

// holding is what one owner has said.
type holding struct {
	rows  []rowID
	edges []edge
}

func newWanted() *wanted {
	return &wanted{
		rows: map[rowID]wantedRow{}, edges: map[edge]string{},
		byRow: map[string]map[edge]struct{}{}, owners: map[string]holding{},
	}
}

// dirt is what has to be compared with the database, with the owner who is told when that fails.
type dirt struct {
	rows  map[rowID]string
	edges map[edge]string
}

func newDirt() *dirt { return &dirt{rows: map[rowID]string{}, edges: map[edge]string{}} }

func (d *dirt) empty() bool { return len(d.rows) == 0 && len(d.edges) == 0 }

func (d *dirt) add(other *dirt) {
	for id, owner := range other.rows {
		d.rows[id] = owner
	}
	for e, owner := range other.edges {
		d.edges[e] = owner
	}
}

// byOwner splits the dirt. Owners of rows that live by themselves come first, because the others' rows may need them.
func (d *dirt) byOwner() (owners []string, parts map[string]*dirt) {
	parts = map[string]*dirt{}
	first := map[string]bool{}
	part := func(owner string) *dirt {
		if parts[owner] == nil {
			parts[owner] = newDirt()
			owners = append(owners, owner)
		}
		return parts[owner]
	}
	for id, owner := range d.rows {
		part(owner).rows[id] = owner
		first[owner] = first[owner] || nb.IsRoot(id.table)
	}
	for e, owner := range d.edges {
		part(owner).edges[e] = owner
	}
	slices.SortFunc(owners, func(a, b string) int {
		if first[a] != first[b] {
			if first[a] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return owners, parts
}

// set replaces what an owner wants and marks what changed by it.
func (w *wanted) set(owner string, rows []nb.Row, changed *dirt) {
	before := w.owners[owner]
	now := holding{}
	for _, row := range rows {
		if row.Model != nil {
			id := rowID{row.Table, row.UUID()}
			now.rows = append(now.rows, id)
			w.setRow(id, owner, mark(row, owner), changed)
		}
		for _, l := range row.Links {
			e := newEdge(l)
			now.edges = append(now.edges, e)
			w.setEdge(e, owner, changed)
		}
	}
	w.owners[owner] = now
	if len(now.rows) == 0 && len(now.edges) == 0 {
		delete(w.owners, owner)
	}
	w.drop(owner, before, now, changed)
}

// mark writes into the row who owns it, for people who read the database.
func mark(row nb.Row, owner string) model.Model {
	ids := map[string]string{"patchbay-owner": owner}
	if _, named := nb.Name(row.Model); !named {
		ids["patchbay-key"] = row.Key
	}
	nb.AddExternalIDs(row.Model, ids)
	return row.Model
}

func (w *wanted) setRow(id rowID, owner string, m model.Model, changed *dirt) {
	old, known := w.rows[id]
	w.rows[id] = wantedRow{owner: owner, model: m}
	if !known || len(nb.Differing(id.table, m, old.model)) > 0 {
		changed.rows[id] = owner
	}
}

func (w *wanted) setEdge(e edge, owner string, changed *dirt) {
	if _, known := w.edges[e]; !known {
		changed.edges[e] = owner
		for _, end := range []string{e.parent, e.child} {
			if w.byRow[end] == nil {
				w.byRow[end] = map[edge]struct{}{}
			}
			w.byRow[end][e] = struct{}{}
		}
	}
	w.edges[e] = owner
}

// drop forgets what the owner wanted before and does not want now, unless somebody else has taken it over.
func (w *wanted) drop(owner string, before, now holding, changed *dirt) {
	kept := map[rowID]bool{}
	for _, id := range now.rows {
		kept[id] = true
	}
	for _, id := range before.rows {
		if !kept[id] && w.rows[id].owner == owner {
			delete(w.rows, id)
			changed.rows[id] = owner
		}
	}
	keptEdges := map[edge]bool{}
	for _, e := range now.edges {
		keptEdges[e] = true
	}
	for _, e := range before.edges {
		if !keptEdges[e] && w.edges[e] == owner {
			w.dropEdge(e)
			changed.edges[e] = owner
		}
	}
}

func (w *wanted) dropEdge(e edge) {
	delete(w.edges, e)
	for _, end := range []string{e.parent, e.child} {
		delete(w.byRow[end], e)
		if len(w.byRow[end]) == 0 {
			delete(w.byRow, end)
		}
	}
}
