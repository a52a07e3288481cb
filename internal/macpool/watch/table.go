package watch

import (
	"maps"
	"slices"
	"strings"
)

// member is a running object that uses addresses, written type/namespace/name.
type member string

// use is what a member uses. Two members with one non-empty identity are the two ends of one migration.
type use struct {
	identity string
	macs     []string // normalized, sorted, each once
}

// table knows who uses which address.
type table struct {
	uses map[member]use
	at   map[string]map[member]bool
}

func newTable() *table { return &table{uses: map[member]use{}, at: map[string]map[member]bool{}} }

// set replaces what a member uses and returns the addresses whose users have changed.
func (t *table) set(m member, u use) []string {
	before := t.uses[m]
	if before.identity == u.identity && slices.Equal(before.macs, u.macs) {
		return nil
	}
	changed := map[string]bool{}
	for _, mac := range before.macs {
		changed[mac] = before.identity != u.identity || !slices.Contains(u.macs, mac)
		if delete(t.at[mac], m); len(t.at[mac]) == 0 {
			delete(t.at, mac)
		}
	}
	for _, mac := range u.macs {
		if _, kept := changed[mac]; !kept {
			changed[mac] = true
		}
		if t.at[mac] == nil {
			t.at[mac] = map[member]bool{}
		}
		t.at[mac][m] = true
	}
	if t.uses[m] = u; len(u.macs) == 0 {
		delete(t.uses, m)
	}
	maps.DeleteFunc(changed, func(_ string, is bool) bool { return !is })
	return slices.Sorted(maps.Keys(changed))
}

// users are the members that use an address, sorted.
func (t *table) users(mac string) []member { return slices.Sorted(maps.Keys(t.at[mac])) }

// collide says that an address has users that should not share it.
func (t *table) collide(mac string) bool {
	all := t.users(mac)
	for _, m := range all {
		if identity := t.uses[m].identity; identity == "" || identity != t.uses[all[0]].identity {
			return len(all) > 1
		}
	}
	return false
}

// collisions are the texts about all addresses that a member shares.
func (t *table) collisions(m member) []string {
	var texts []string
	for _, mac := range t.uses[m].macs {
		if t.collide(mac) {
			texts = append(texts, collisionText(mac, t.users(mac)))
		}
	}
	return texts
}

func collisionText(mac string, all []member) string {
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = string(m)
	}
	return "MAC " + mac + ": Collision between " + strings.Join(names, ", ")
}
