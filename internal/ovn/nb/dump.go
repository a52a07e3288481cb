package nb

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	text "strings"
)

// Dump prints rows for people and golden files: one block per row, references by name, in an order that does not depend
// on the order of the rows.
func Dump(rows []Row) string {
	labels := map[string]string{}
	for _, row := range rows {
		labels[row.UUID()] = row.Table + " " + row.Key
		for _, l := range row.Links {
			labels[l.Parent.UUID()] = l.Parent.Table + " " + l.Parent.Key
			labels[l.Child.UUID()] = l.Child.Table + " " + l.Child.Key
		}
	}
	sorted := slices.Clone(rows)
	slices.SortFunc(sorted, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Key, b.Key))
	})
	var out text.Builder
	for _, row := range sorted {
		dumpRow(&out, row, labels)
	}
	return out.String()
}

func dumpRow(out *text.Builder, row Row, labels map[string]string) {
	fmt.Fprintf(out, "%s %s\n", row.Table, row.Key)
	if row.Model != nil {
		dumpColumns(out, row, labels)
	}
	for _, l := range row.Links {
		if l.Child == row.Ref {
			fmt.Fprintf(out, "  in %s of %s %s\n", l.Column, l.Parent.Table, l.Parent.Key)
		} else {
			fmt.Fprintf(out, "  has in %s: %s %s\n", l.Column, l.Child.Table, l.Child.Key)
		}
	}
}

func dumpColumns(out *text.Builder, row Row, labels map[string]string) {
	for _, column := range OwnColumns(row.Table, row.Model) {
		f, _ := field(row.Model, column)
		if name, ok := Name(row.Model); ok && column == "name" && name == row.Key {
			continue
		}
		if text := columnText(f, labels); text != "" {
			fmt.Fprintf(out, "  %s: %s\n", column, text)
		}
	}
}

func columnText(f reflect.Value, labels map[string]string) string {
	switch v := f.Interface().(type) {
	case map[string]string:
		var entries []string
		for key, value := range v {
			entries = append(entries, key+"="+value)
		}
		slices.Sort(entries)
		return text.Join(entries, " ; ")
	case []string:
		texts := make([]string, len(v))
		for i, s := range v {
			texts[i] = label(s, labels)
		}
		slices.Sort(texts)
		return text.Join(texts, " ; ")
	}
	if f.IsZero() {
		return ""
	}
	if f.Kind() == reflect.Pointer {
		f = f.Elem()
	}
	return label(fmt.Sprint(f.Interface()), labels)
}

func label(value string, labels map[string]string) string {
	if text, ok := labels[value]; ok {
		return "<" + text + ">"
	}
	return value
}
