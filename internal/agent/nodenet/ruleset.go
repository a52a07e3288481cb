package nodenet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is the name of our nftables table (family inet).
const Table = "patchbay"

// Ruleset is the whole content of the table: pure data that can be compared.
type Ruleset struct {
	Chains map[string]Chain
	Maps   map[string]Map // and sets
}

// Chain is a list of rules.
type Chain struct {
	Hook     knftables.BaseChainHook // empty for a chain that is only jumped to
	Priority knftables.BaseChainPriority
	Filter   bool // or else a base chain translates
	Rules    []string
}

// Map is a map, or a set when Type has no ":".
type Map struct {
	Type     string
	Interval bool              // elements are ranges
	Elements map[string]string // parts of a concatenation are joined by " . "
}

func (m Map) isSet() bool { return !strings.Contains(m.Type, ":") }

// Table applies rulesets by writing what changed.
type table struct {
	nft     knftables.Interface
	applied *Ruleset // nil when the kernel's content is not known
}

// apply makes the kernel's table equal to wanted, atomically. It says whether anything was written.
func (t *table) apply(ctx context.Context, wanted Ruleset) (bool, error) {
	tx := t.nft.NewTransaction()
	if t.applied == nil {
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		tx.Add(&knftables.Table{})
		change(tx, Ruleset{}, wanted)
	} else {
		change(tx, *t.applied, wanted)
	}
	if tx.NumOperations() == 0 {
		return false, nil
	}
	if err := t.nft.Run(ctx, tx); err != nil {
		t.applied = nil
		return false, fmt.Errorf("write nftables table inet %s: %w", Table, err)
	}
	t.applied = &wanted
	return true, nil
}

// forgetIfChanged looks whether somebody else emptied or removed the table, so that the next apply writes all of it.
func (t *table) forgetIfChanged(ctx context.Context) {
	if t.applied == nil {
		return
	}
	chains, err := t.nft.List(ctx, "chains")
	slices.Sort(chains)
	if err != nil || !slices.Equal(chains, slices.Sorted(maps.Keys(t.applied.Chains))) {
		t.applied = nil
	}
}

// change adds to tx what turns one ruleset into another. The order keeps every reference valid: what is referred to comes
// before what refers to it, and goes after it.
func change(tx *knftables.Transaction, from, to Ruleset) {
	addContainers(tx, from, to)
	changeElements(tx, from, to)
	changeRules(tx, from, to)
	deleteContainers(tx, from, to)
}

func addContainers(tx *knftables.Transaction, from, to Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(to.Chains)) {
		if _, ok := from.Chains[name]; !ok {
			tx.Add(newChain(name, to.Chains[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(to.Maps)) {
		if _, ok := from.Maps[name]; !ok {
			tx.Add(newMap(name, to.Maps[name]))
		}
	}
}

func newChain(name string, c Chain) *knftables.Chain {
	chain := &knftables.Chain{Name: name}
	if c.Hook != "" {
		kind := knftables.NATType
		if c.Filter {
			kind = knftables.FilterType
		}
		chain.Type, chain.Hook, chain.Priority = &kind, &c.Hook, &c.Priority
	}
	return chain
}

func newMap(name string, m Map) knftables.Object {
	var flags []knftables.SetFlag
	if m.Interval {
		flags = append(flags, knftables.IntervalFlag)
	}
	if m.isSet() {
		return &knftables.Set{Name: name, Type: m.Type, Flags: flags}
	}
	return &knftables.Map{Name: name, Type: m.Type, Flags: flags}
}

func changeElements(tx *knftables.Transaction, from, to Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(to.Maps)) {
		m, before := to.Maps[name], from.Maps[name].Elements
		for _, key := range slices.Sorted(maps.Keys(before)) {
			if value, ok := m.Elements[key]; !ok || value != before[key] {
				tx.Delete(element(name, m, key, before[key]))
			}
		}
		for _, key := range slices.Sorted(maps.Keys(m.Elements)) {
			if value, ok := before[key]; !ok || value != m.Elements[key] {
				tx.Add(element(name, m, key, m.Elements[key]))
			}
		}
	}
}

func element(name string, m Map, key, value string) *knftables.Element {
	const and = " . "
	if m.isSet() {
		return &knftables.Element{Set: name, Key: strings.Split(key, and)}
	}
	return &knftables.Element{Map: name, Key: strings.Split(key, and), Value: strings.Split(value, and)}
}

func changeRules(tx *knftables.Transaction, from, to Ruleset) {
	for _, name := range slices.Sorted(maps.Keys(to.Chains)) {
		rules, before := to.Chains[name].Rules, from.Chains[name].Rules
		if slices.Equal(rules, before) {
			continue
		}
		if len(before) > 0 {
			tx.Flush(&knftables.Chain{Name: name})
		}
		for _, rule := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: rule})
		}
	}
}

func deleteContainers(tx *knftables.Transaction, from, to Ruleset) {
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(from.Chains)) {
		if _, ok := to.Chains[name]; !ok {
			tx.Flush(&knftables.Chain{Name: name})
			gone = append(gone, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from.Maps)) {
		if _, ok := to.Maps[name]; !ok {
			tx.Delete(newMap(name, from.Maps[name]))
		}
	}
	for _, name := range gone {
		tx.Delete(&knftables.Chain{Name: name})
	}
}
