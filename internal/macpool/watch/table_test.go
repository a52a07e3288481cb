package watch

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	table := newTable()
	const mac, other = "02:00:00:00:00:01", "02:00:00:00:00:02"
	for _, step := range []struct {
		what    string
		who     member
		use     use
		changed []string
		collide []string // what vmi/ns1/a says
	}{
		{"one user", "vmi/ns1/a", use{macs: []string{mac, other}}, []string{mac, other}, nil},
		{"the same again", "vmi/ns1/a", use{macs: []string{mac, other}}, nil, nil},
		{"a second one", "vmi/ns2/b", use{macs: []string{mac}}, []string{mac}, []string{"MAC 02:00:00:00:00:01: Collision between vmi/ns1/a, vmi/ns2/b"}},
		{"a pod too", "pod/ns/p", use{macs: []string{mac}}, []string{mac}, []string{"MAC 02:00:00:00:00:01: Collision between pod/ns/p, vmi/ns1/a, vmi/ns2/b"}},
		{"the pod goes", "pod/ns/p", use{}, []string{mac}, []string{"MAC 02:00:00:00:00:01: Collision between vmi/ns1/a, vmi/ns2/b"}},
		{"two ends of one migration", "vmi/ns2/b", use{identity: "m", macs: []string{mac}}, []string{mac}, []string{"MAC 02:00:00:00:00:01: Collision between vmi/ns1/a, vmi/ns2/b"}},
		{"both know of it", "vmi/ns1/a", use{identity: "m", macs: []string{mac}}, []string{mac, other}, nil},
		{"all gone", "vmi/ns2/b", use{}, []string{mac}, nil},
	} {
		if diff := cmp.Diff(step.changed, table.set(step.who, step.use)); diff != "" {
			t.Errorf("%s: changed addresses, -want +got:\n%s", step.what, diff)
		}
		if diff := cmp.Diff(step.collide, table.collisions("vmi/ns1/a")); diff != "" {
			t.Errorf("%s: collisions, -want +got:\n%s", step.what, diff)
		}
	}
	if len(table.uses) != 1 || len(table.at) != 1 {
		t.Errorf("left over: %+v", table)
	}
}
