package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// create makes a network namespace with a name of this test's own and removes it at the end.
func create(t *testing.T, suffix string) string {
	t.Helper()
	name := fmt.Sprintf("pb-nstest-%d-%s", os.Getpid(), suffix)
	made, err := CreateNetwork(name)
	if err != nil || !made {
		t.Fatalf("made: %v, %v", made, err)
	}
	t.Cleanup(func() {
		if err := DeleteNetwork(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func TestANetworkNamespaceIsMadeOnceAndRemoved(t *testing.T) {
	before := mountTable(t)
	name := create(t, "a")
	if made, err := CreateNetwork(name); made || err != nil {
		t.Errorf("made again: %v, %v", made, err)
	}
	inode := NetworkInode(name)
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		t.Fatal(err)
	}
	if inode == 0 || inode == own.Ino {
		t.Errorf("inode %d is not a new namespace's (ours is %d)", inode, own.Ino)
	}
	for range 2 {
		if err := DeleteNetwork(name); err != nil {
			t.Fatal(err)
		}
	}
	if NetworkInode(name) != 0 {
		t.Error("the name is still there")
	}
	if diff := cmp.Diff(before, mountTable(t)); diff != "" {
		t.Errorf("the host's mounts changed (-before +after):\n%s", diff)
	}
}

func TestANameLeftByARestartOfTheHostIsTakenOver(t *testing.T) {
	name := fmt.Sprintf("pb-nstest-%d-stale", os.Getpid())
	if err := os.WriteFile(NetworkPath(name), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := DeleteNetwork(name); err != nil {
			t.Error(err)
		}
	}()
	if NetworkInode(name) != 0 {
		t.Error("an empty file is taken for a namespace")
	}
	if made, err := CreateNetwork(name); !made || err != nil {
		t.Errorf("made: %v, %v", made, err)
	}
}

func TestDialAndListenInside(t *testing.T) {
	name := create(t, "dial")
	if err := InNetwork(name, func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }); err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(t.Context(), name, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			fmt.Fprint(conn, "hello")
			conn.Close()
		}
	}()
	address := listener.Addr().String()
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); err == nil {
		conn.Close()
		t.Error("the listener is reachable from the host")
	}
	conn, err := DialContext(name)(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestAMissingNamespaceIsAnError(t *testing.T) {
	_, err := DialContext("pb-nstest-none")(context.Background(), "tcp", "127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "/run/netns/pb-nstest-none") {
		t.Errorf("got %v", err)
	}
}

// newTree makes a directory with one thing of each kind, and beside it a directory "own" with a note.
func newTree(t *testing.T, dir string) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	err := errors.Join(
		os.MkdirAll(filepath.Join(tree, "dir", "below"), 0o755), os.MkdirAll(filepath.Join(tree, "other", "below"), 0o700),
		os.WriteFile(filepath.Join(tree, "file"), []byte("the host's"), 0o640), os.Symlink("file", filepath.Join(tree, "link")),
		os.Mkdir(filepath.Join(dir, "own"), 0o755), os.WriteFile(filepath.Join(dir, "own", "note"), []byte("own"), 0o600),
		os.Chmod(tree, 0o711),
	)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// checkTree looks at the tree from inside, where "own" stands for a directory that the host lacks and for one that it has, and writes
// to it.
func checkTree(tree string) error {
	var got []string
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		got = append(got, fmt.Sprintf("%v %s", info.Mode(), strings.TrimPrefix(path, filepath.Dir(tree)+"/")))
		return err
	})
	if err != nil {
		return err
	}
	want := []string{
		"drwx--x--x tree", "drwxr-xr-x tree/dir", "-rw------- tree/dir/note", "-rw-r----- tree/file", "Lrwxrwxrwx tree/link",
		"drwxr-xr-x tree/missing", "-rw------- tree/missing/note", "drwxr-xr-x tree/missing-too", "-rw------- tree/missing-too/note", "drwx------ tree/other", "drwx------ tree/other/below",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("inside, the tree is (-want +got):\n%s", diff)
	}
	if data, err := os.ReadFile(filepath.Join(tree, "link")); err != nil || string(data) != "the host's" {
		return fmt.Errorf("inside, the file is %q, %v", data, err)
	}
	return os.WriteFile(filepath.Join(tree, "missing", "note"), []byte("own, inside"), 0o600)
}

// TestMountNamespace follows one from its making to its end.
func TestMountNamespace(t *testing.T) {
	dir := t.TempDir()
	replacement := filepath.Join(dir, "replacement")
	if err := os.WriteFile(replacement, []byte("7\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t, dir)
	missing := filepath.Join(tree, "missing")
	before := mountTable(t)
	m := Mounts{
		Pin:     filepath.Join(dir, "pins", "one"),
		Scratch: []string{"/run"},
		Binds:   map[string]string{"/proc/sys/kernel/panic": replacement, "/proc/sys/kernel/no-such-value": replacement},
		Directories: map[string]string{
			missing: filepath.Join(dir, "own"), missing + "-too": filepath.Join(dir, "own"), filepath.Join(tree, "dir"): filepath.Join(dir, "own"),
		},
	}
	for i, want := range []bool{true, false} {
		if made, err := EnsureMounts(m); made != want || err != nil {
			t.Fatalf("call %d made one: %v, %v", i, made, err)
		}
	}
	second := Mounts{Pin: filepath.Join(dir, "pins", "two")}
	if _, err := EnsureMounts(second); err != nil {
		t.Fatal(err)
	}
	err := OnThread(func() error {
		if err := EnterMounts(m.Pin); err != nil {
			return err
		}
		data, err := os.ReadFile("/proc/sys/kernel/panic")
		if err != nil || string(data) != "7\n" {
			return fmt.Errorf("inside, the value is %q, %v", data, err)
		}
		entries, err := os.ReadDir("/run")
		if err != nil || len(entries) != 0 {
			return fmt.Errorf("inside, /run holds %v, %v", entries, err)
		}
		return errors.Join(os.WriteFile("/run/made-inside", nil, 0o600), checkTree(tree))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/run/made-inside"); err == nil {
		t.Error("a file made inside appears on the host")
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("a directory added inside appears on the host")
	}
	if data, err := os.ReadFile(filepath.Join(dir, "own", "note")); err != nil || string(data) != "own, inside" {
		t.Errorf("what was written inside is %q, %v", data, err)
	}
	if err := UnmountBelow(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, mountTable(t)); diff != "" {
		t.Errorf("the host's mounts changed (-before +after):\n%s", diff)
	}
}

func TestMountsBelow(t *testing.T) {
	const mountinfo = `22 27 0:21 / /proc rw - proc proc rw
40 27 254:0 /x /var/lib/patchbay/a/run/mnt rw - ext4 /dev/vda rw
41 40 0:4 mnt:[1] /var/lib/patchbay/a/run/mnt/node-1 rw - nsfs nsfs rw
42 27 0:9 / /var/lib/patchbay/ab rw - tmpfs tmpfs rw
43 27 0:9 / /var/lib/patchbay/a/with\040space rw - tmpfs tmpfs rw
short
`
	want := []string{"/var/lib/patchbay/a/run/mnt", "/var/lib/patchbay/a/run/mnt/node-1", "/var/lib/patchbay/a/with space"}
	if diff := cmp.Diff(want, mountsBelow(mountinfo, "/var/lib/patchbay/a")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// mountTable lists the host's mount points that this package could have made; other programs mount and unmount meanwhile.
func mountTable(t *testing.T) []string {
	t.Helper()
	var ours []string
	for _, dir := range []string{"/run/netns", os.TempDir(), "/proc", "/run"} {
		mounts, err := MountsBelow(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mounts {
			if !strings.HasPrefix(m, networkDir) || strings.Contains(m, fmt.Sprintf("pb-nstest-%d-", os.Getpid())) {
				ours = append(ours, m)
			}
		}
	}
	return ours
}
