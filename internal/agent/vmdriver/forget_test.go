package vmdriver

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// A nudge that comes while a machine is given up costs one more look, not an endless run of looks.
func TestForgetTakesTheNudge(t *testing.T) {
	d := New(Config{})
	key := types.NamespacedName{Namespace: "ns", Name: "vm"}
	m := newMachine(d, key)
	d.machines[key] = m
	m.nudge()
	if d.forget(m) {
		t.Error("forgotten although somebody had nudged it")
	}
	if !d.forget(m) || d.lookup(key) != nil {
		t.Error("not forgotten although nobody had nudged it again")
	}
}
