package nb

import (
	"maps"
	"slices"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// schemaOf is the schema of the tables that have models; the generated text was parsed when it was generated.
var schemaOf = sync.OnceValue(Schema)

// Tables are the tables that have models, in order.
func Tables() []string { return slices.Sorted(maps.Keys(schemaOf().Tables)) }

// IsRoot tells whether rows of a table stay until they are deleted; rows of the other tables vanish with the last
// reference to them.
func IsRoot(table string) bool { return schemaOf().Tables[table].IsRoot }

// IsSingleton tells whether a table holds one row, whoever made it.
func IsSingleton(table string) bool { return table == NBGlobalTable }

// IsStrong tells whether a reference in a column keeps the row alive that it refers to. A member of any other column may
// be taken out of it by somebody without vanishing.
func IsStrong(table, column string) bool {
	c := schemaOf().Tables[table].Columns[column]
	if c == nil || c.TypeObj == nil || c.TypeObj.Key == nil {
		return false
	}
	kind, err := c.TypeObj.Key.RefType()
	return err == nil && kind == ovsdb.Strong
}

// Reference is a UUID in a column of a row.
type Reference struct {
	Column string
	Table  string // of the row that it refers to
	UUID   string
}

// References are all references that a row holds to rows of tables that have models.
func References(table string, m model.Model) []Reference {
	var references []Reference
	for column, schema := range schemaOf().Tables[table].Columns {
		if schema.TypeObj == nil || schema.TypeObj.Key == nil {
			continue
		}
		target, err := schema.TypeObj.Key.RefTable()
		if _, modelled := schemaOf().Tables[target]; err != nil || !modelled {
			continue
		}
		for _, uuid := range values(m, column) {
			references = append(references, Reference{Column: column, Table: target, UUID: uuid})
		}
	}
	return references
}

// UniqueName tells whether no two rows of a table may have the same name.
func UniqueName(table string) bool {
	return slices.ContainsFunc(schemaOf().Tables[table].Indexes, func(columns []string) bool {
		return slices.Equal(columns, []string{"name"})
	})
}
