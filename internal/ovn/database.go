// Package ovn keeps the OVN Northbound database as the controllers want it. Controllers hand rows to a Store, by owner; the
// Store compares them with the database, writes the difference in few transactions, takes back what somebody else changed
// and rebuilds a database that was lost. It must not know what the rows mean.
package ovn

import (
	"context"

	"github.com/ovn-kubernetes/libovsdb/model"

	"patchbay/internal/ovn/nb"
)

// Database is a connected Northbound database. Reads answer from memory and include every transaction that Apply has
// reported as done.
type Database interface {
	// Row is a copy of a row, nil when there is none.
	Row(table, uuid string) model.Model
	Has(table, uuid string) bool
	// Rows are copies of all rows of a table.
	Rows(table string) []model.Model
	// Named are the UUIDs of the rows with a name.
	Named(table, name string) []string
	// Apply carries out all operations or none.
	Apply(ctx context.Context, ops []Op) error
	// Lost is closed when the connection is gone; the Database is useless then.
	Lost() <-chan struct{}
	Close()
}

// Dial connects to a database. Until it is lost, changed is called for every change of a row, whoever made it; it may be
// called from any goroutine and must return quickly.
type Dial func(ctx context.Context, changed func(Change)) (Database, error)

// Change is one row before and after; nil where it did not exist.
type Change struct {
	Table    string
	Old, New model.Model
}

func (c Change) uuid() string {
	if c.New != nil {
		return nb.UUID(c.New)
	}
	return nb.UUID(c.Old)
}

// OpKind is what an operation does.
type OpKind int

// The kinds, in the order in which a transaction carries them out.
const (
	Remove OpKind = iota // takes Members out of a member column
	Delete               // deletes a row of a root table
	Insert               // makes the row Model
	Update               // writes Columns of Model
	Add                  // puts Members into a member column
)

func (k OpKind) String() string {
	return [...]string{"remove", "delete", "insert", "update", "add"}[k]
}

// Op is one operation of a transaction.
type Op struct {
	Kind    OpKind
	Table   string
	UUID    string
	Model   model.Model
	Columns []string
	Column  string
	Members []string
}
