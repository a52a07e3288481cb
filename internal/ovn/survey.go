package ovn

import "patchbay/internal/ovn/nb"

// survey marks everything in which a database may differ from what is wanted: after a connection, and from time to time. It
// reads every row once. Rows of ours that nobody wants are marked only when prune is set.
func survey(want *wanted, db Database, prune bool, d *dirt) {
	for id, row := range want.rows {
		d.rows[id] = row.owner
	}
	have := map[edge]bool{}
	for _, table := range tables {
		members := nb.Members[table]
		if len(members) == 0 && !prune {
			continue
		}
		for _, row := range db.Rows(table) {
			id := rowID{table, nb.UUID(row)}
			if _, wanted := want.rows[id]; !wanted && prune && nb.Owned(id.uuid) {
				d.rows[id] = ""
			}
			for column, memberTable := range members {
				for _, child := range nb.MemberUUIDs(row, column) {
					have[edge{table, id.uuid, column, memberTable, child}] = true
				}
			}
		}
	}
	for e, owner := range want.edges {
		if !have[e] {
			d.edges[e] = owner
		}
	}
	for e := range have {
		if _, wanted := want.edges[e]; !wanted && prune && nb.Owned(e.child) {
			d.edges[e] = ""
		}
	}
}

var tables = nb.Tables()
