package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHierarchies(t *testing.T) {
	cases := map[string]struct {
		mountinfo string
		want      []string
	}{
		"version 2": {"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n", []string{"/sys/fs/cgroup"}},
		"version 1": {`31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`, []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"}},
		"mounted again":       {"30 23 0:26 / /a rw - cgroup2 c rw\n31 23 0:26 / /b rw - cgroup2 c rw\n", []string{"/a"}},
		"part of a hierarchy": {"30 23 0:26 /docker /a rw - cgroup2 c rw\n", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, parseHierarchies(c.mountinfo)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestHolds(t *testing.T) {
	cases := map[string]struct {
		text string
		want bool
	}{
		"in it":        {"0::/patchbay-a\n", true},
		"below it":     {"9:name=systemd:/\n4:memory:/patchbay-a/node-1/x\n", true},
		"like it":      {"0::/patchbay-ab/node-1\n", false},
		"elsewhere":    {"0::/user.slice/patchbay-a\n", false},
		"with a colon": {"0::/patchbay-a/x:y\n", true},
		"empty":        {"", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Holds("/patchbay-a", c.text); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// TestDelegate has ordinary directories in the place of a hierarchy of version 2.
func TestDelegate(t *testing.T) {
	point := t.TempDir()
	for dir, controllers := range map[string]string{"": "cpu memory\n", "a": "memory\n", "a/b": "memory\n", "c": "cpu\n"} {
		if err := os.MkdirAll(filepath.Join(point, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(point, dir, "cgroup.controllers"), []byte(controllers), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	delegate(point, "/a/b")
	got := map[string]string{}
	for _, dir := range []string{"", "a", "a/b", "c"} {
		data, _ := os.ReadFile(filepath.Join(point, dir, "cgroup.subtree_control"))
		got[dir] = string(data)
	}
	// The last write is what an ordinary file keeps. The group itself hands nothing down: that is its user's choice.
	if diff := cmp.Diff(map[string]string{"": "+memory", "a": "+memory", "a/b": "", "c": ""}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEnsureAndRemove(t *testing.T) {
	path := fmt.Sprintf("/pb-cgtest-%d", os.Getpid())
	for range 2 {
		if err := Ensure(path + "/node-1"); err != nil {
			t.Fatal(err)
		}
	}
	points, err := hierarchies()
	if err != nil || len(points) == 0 {
		t.Fatalf("hierarchies: %v, %v", points, err)
	}
	for _, point := range points {
		if err := os.Mkdir(filepath.Join(point, path, "node-1", "pod"), 0o755); err != nil {
			t.Error(err)
		}
	}
	if !Exists(path) {
		t.Error("the group does not exist")
	}
	for range 2 {
		if err := Remove(t.Context(), path); err != nil {
			t.Error(err)
		}
	}
	if Exists(path) {
		t.Error("the group still exists")
	}
}
