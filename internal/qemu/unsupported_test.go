package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
)

func TestTheManualListsWhatIsRefused(t *testing.T) {
	manual, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range refusals(&virtv1.VirtualMachineInstance{}) {
		name := strings.TrimPrefix(strings.TrimPrefix(r.path, "spec."), "the annotation ")
		if !strings.Contains(string(manual), "`"+name+"`") || !strings.Contains(string(manual), fmt.Sprintf("| %s |", r.hint)) {
			t.Errorf("docs/api.md does not say that %s is refused because %q", name, r.hint)
		}
		if r.used {
			t.Errorf("an empty VMI is refused for %s", r.path)
		}
	}
}
