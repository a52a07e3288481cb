package vmdriver

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSameBases(t *testing.T) {
	source := map[string]string{"disk0": "a", "disk1": "b", "disk2": "c", "disk3": ""}
	target := map[string]string{"disk0": "a", "disk1": "x", "disk3": ""}
	if diff := cmp.Diff([]string{"disk0"}, sameBases(source, target)); diff != "" {
		t.Errorf("only disks whose checksums both sides know and share are copied in part (-want +got):\n%s", diff)
	}
	if same := sameBases(source, nil); len(same) != 0 {
		t.Errorf("a target that knows no checksum shares %v", same)
	}
}
