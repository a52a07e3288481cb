package launcherpod

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

func TestID(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, want := range map[string]string{
		"web-01":                web01,
		strings.Repeat("b", 63): strings.Repeat("b", 63),
		long:                    strings.Repeat("a", 54) + "-0098ba82",
	} {
		if got := ID(name); got != want {
			t.Errorf("ID(%q) = %q, want %q", name, got, want)
		}
	}
}

const web01 = "web-01"

func TestNameFollowsFromUID(t *testing.T) {
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.Name, vmi.UID = web01, "one"
	first, again := Name(vmi, nil), Name(vmi, nil)
	if first != again {
		t.Errorf("names of one start differ: %q and %q", first, again)
	}
	target := Name(vmi, &Migration{UID: "two"})
	vmi.UID = types.UID("three")
	if next := Name(vmi, nil); next == first || target == first {
		t.Errorf("next start %q and target %q must differ from %q", next, target, first)
	}
	if !strings.HasPrefix(first, "virt-launcher-web-01-") {
		t.Errorf("name %q does not begin with virt-launcher-web-01-", first)
	}
}

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		web01:                                  web01,
		"db.internal.example":                  "db",
		strings.Repeat("c", 62) + "-" + "tail": strings.Repeat("c", 62),
	} {
		vmi := &virtv1.VirtualMachineInstance{}
		vmi.Name = name
		if got := Hostname(vmi); got != want {
			t.Errorf("Hostname(%q) = %q, want %q", name, got, want)
		}
	}
}
