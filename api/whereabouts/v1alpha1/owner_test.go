package v1alpha1

import "testing"

func TestOwners(t *testing.T) {
	for text, want := range map[string]Owner{
		"red/web":      {OwnerPod, "red", "web"},
		"vm/red/db":    {OwnerMachine, "red", "db"},
		"node//node-1": {OwnerNode, "", "node-1"},
		"node/x":       {OwnerPod, "node", "x"},
	} {
		got, ok := ParseOwner(text)
		if !ok || got != want || got.String() != text {
			t.Errorf("%s: %+v %s, %t", text, got, got, ok)
		}
	}
	for _, text := range []string{"", "web", "/web", "red/", "node/red/x", "vm//x", "pod/red/x", "a/b/c/d"} {
		if got, ok := ParseOwner(text); ok {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}
