package nb

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/ovn-kubernetes/libovsdb/model"
)

// Generated models are structs whose fields carry the column's name in a tag. What follows reads them by column, so that
// comparing and printing rows needs no code per table.

var fieldsByType sync.Map // reflect.Type -> map[string]int

func fields(t reflect.Type) map[string]int {
	if known, ok := fieldsByType.Load(t); ok {
		return known.(map[string]int)
	}
	index := map[string]int{}
	for i := range t.NumField() {
		index[t.Field(i).Tag.Get("ovsdb")] = i
	}
	fieldsByType.Store(t, index)
	return index
}

func field(m model.Model, column string) (reflect.Value, bool) {
	v := reflect.ValueOf(m).Elem()
	i, ok := fields(v.Type())[column]
	if !ok {
		return reflect.Value{}, false
	}
	return v.Field(i), true
}

func setString(m model.Model, column, value string) {
	if f, ok := field(m, column); ok && f.Kind() == reflect.String {
		f.SetString(value)
	}
}

// UUID of a model's row.
func UUID(m model.Model) string {
	f, _ := field(m, "_uuid")
	return f.String()
}

// Name is the content of a model's name column and whether its table has one.
func Name(m model.Model) (string, bool) {
	f, ok := field(m, "name")
	if !ok || f.Kind() != reflect.String {
		return "", false
	}
	return f.String(), true
}

// MemberUUIDs is the content of a member column.
func MemberUUIDs(m model.Model, column string) []string {
	f, ok := field(m, column)
	if !ok {
		return nil
	}
	uuids, _ := f.Interface().([]string)
	return uuids
}

// values are the strings of a set or optional column.
func values(m model.Model, column string) []string {
	f, ok := field(m, column)
	if !ok {
		return nil
	}
	switch v := f.Interface().(type) {
	case []string:
		return v
	case *string:
		if v != nil {
			return []string{*v}
		}
	}
	return nil
}

// Column is a pointer to a model's field, as libovsdb names columns.
func Column(m model.Model, column string) any {
	f, _ := field(m, column)
	return f.Addr().Interface()
}

// SetColumn copies one column from another row of the same table.
func SetColumn(dst, src model.Model, column string) {
	d, _ := field(dst, column)
	s, _ := field(model.Clone(src), column)
	d.Set(s)
}

// SetReferences replaces the UUIDs in a set or optional column.
func SetReferences(m model.Model, column string, uuids []string) {
	f, _ := field(m, column)
	if f.Kind() == reflect.Slice {
		f.Set(reflect.ValueOf(uuids))
	} else if len(uuids) == 0 {
		f.SetZero()
	}
}

// ExternalIDs is the content of a model's external_ids.
func ExternalIDs(m model.Model) map[string]string {
	f, ok := field(m, "external_ids")
	if !ok {
		return nil
	}
	ids, _ := f.Interface().(map[string]string)
	return ids
}

// AddExternalIDs adds entries to the external_ids of a model whose table has them.
func AddExternalIDs(m model.Model, entries map[string]string) {
	f, ok := field(m, "external_ids")
	if !ok {
		return
	}
	ids := map[string]string{}
	maps.Copy(ids, ExternalIDs(m))
	maps.Copy(ids, entries)
	f.Set(reflect.ValueOf(ids))
}

// OwnColumns are the columns that a Row of the table says itself, in order.
func OwnColumns(table string, m model.Model) []string {
	var own []string
	for column := range fields(reflect.TypeOf(m).Elem()) {
		_, isMember := Members[table][column]
		if column != "_uuid" && !isMember && !slices.Contains(volatile[table], column) {
			own = append(own, column)
		}
	}
	slices.Sort(own)
	return own
}

// Differing are the own columns in which the actual row is not as wanted.
func Differing(table string, want, have model.Model) []string {
	var differing []string
	for _, column := range OwnColumns(table, want) {
		w, _ := field(want, column)
		h, _ := field(have, column)
		if slices.Contains(shared[table], column) {
			if !includes(h, w) {
				differing = append(differing, column)
			}
		} else if !equal(w, h) {
			differing = append(differing, column)
		}
	}
	return differing
}

// Merge returns the model to write: wanted, with the entries of shared map columns that are somebody else's kept.
func Merge(table string, want, have model.Model) model.Model {
	if len(shared[table]) == 0 {
		return want
	}
	merged := model.Clone(want)
	for _, column := range shared[table] {
		w, _ := field(merged, column)
		h, _ := field(have, column)
		all := map[string]string{}
		maps.Copy(all, h.Interface().(map[string]string))
		maps.Copy(all, w.Interface().(map[string]string))
		w.Set(reflect.ValueOf(all))
	}
	return merged
}

func includes(all, some reflect.Value) bool {
	have := all.Interface().(map[string]string)
	for k, v := range some.Interface().(map[string]string) {
		if have[k] != v {
			return false
		}
	}
	return true
}

// equal compares two columns as OVSDB does: sets have no order, and an empty one is like an absent one.
func equal(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Slice:
		return equalSets(a, b)
	case reflect.Map:
		return a.Len() == 0 && b.Len() == 0 || reflect.DeepEqual(a.Interface(), b.Interface())
	default:
		return reflect.DeepEqual(a.Interface(), b.Interface())
	}
}

func equalSets(a, b reflect.Value) bool {
	if a.Len() != b.Len() {
		return false
	}
	as, ok := a.Interface().([]string)
	if !ok {
		return reflect.DeepEqual(a.Interface(), b.Interface())
	}
	bs := b.Interface().([]string)
	if slices.Equal(as, bs) {
		return true
	}
	return slices.Equal(slices.Sorted(slices.Values(as)), slices.Sorted(slices.Values(bs)))
}

// SetName fills a model's name column.
func SetName(m model.Model, name string) { setString(m, "name", name) }
