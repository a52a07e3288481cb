package teardown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/cluster/cgroup"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
	"patchbay/internal/cluster/supervise"
)

func testCluster(t *testing.T, suffix string) layout.Cluster {
	t.Helper()
	return layout.Cluster{Home: t.TempDir(), Name: fmt.Sprintf("td%d%s", os.Getpid(), suffix)}
}

// begin starts a process that sleeps, and reaps it when it ends.
func begin(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return cmd.Process.Pid
}

func sleeper(env ...string) *exec.Cmd {
	cmd := exec.Command("sleep", "1000")
	cmd.Env = env
	return cmd
}

// TestWhoBelongsToACluster starts one process for every trait, and their look-alikes.
func TestWhoBelongsToACluster(t *testing.T) {
	c, other := testCluster(t, "a"), testCluster(t, "b")
	ns := c.FabricNamespace()
	if _, err := namespace.CreateNetwork(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = namespace.DeleteNetwork(ns) })
	if err := cgroup.Ensure(c.CgroupParent()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cgroup.Remove(context.Background(), c.CgroupParent()) })

	marked := begin(t, sleeper(supervise.MarkPrefix(c.Dir())+"etcd"))
	supervisor := begin(t, sleeper(supervise.MarkPrefix(c.Dir())+"supervisor"))
	inNetwork := 0
	err := namespace.InNetwork(ns, func() error {
		inNetwork = begin(t, sleeper())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	inCgroup := begin(t, sleeper())
	enterCgroup(t, c.CgroupParent(), inCgroup)
	shell := exec.Command("sh", "-c", "env -i sleep 1000 & wait")
	shell.Env = append(os.Environ(), supervise.MarkPrefix(c.Dir())+"containerd")
	parent := begin(t, shell)
	child := childOf(t, parent)

	begin(t, sleeper(supervise.MarkPrefix(other.Dir())+"etcd"))
	begin(t, exec.Command("tail", "-f", "/dev/null", c.Path("logs", "etcd.log"))) // a user who looks at a log

	id := Identity{Mark: c.Dir(), Cgroup: c.CgroupParent(), Namespaces: namespaceInodes(c, []string{ns})}
	all, supervisors, err := id.find()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	want := []int{marked, supervisor, inNetwork, inCgroup, parent, child}
	slices.Sort(want)
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{supervisor}, supervisors); diff != "" {
		t.Errorf("supervisors (-want +got):\n%s", diff)
	}
	if killed, err := id.killAll(t.Context()); killed != len(want) || err != nil {
		t.Errorf("killed %d, %v", killed, err)
	}
	if left, _, _ := id.find(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func enterCgroup(t *testing.T, path string, pid int) {
	t.Helper()
	files, err := filepath.Glob("/sys/fs/cgroup/*" + path + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	if single := "/sys/fs/cgroup" + path + "/cgroup.procs"; len(files) == 0 {
		files = []string{single}
	}
	for _, file := range files {
		if os.WriteFile(file, []byte(fmt.Sprint(pid)), 0o644) == nil {
			return // one hierarchy is enough; some want to be configured first
		}
	}
	t.Fatal("no control group takes a process")
}

func childOf(t *testing.T, parent int) int {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		processes, err := Identity{}.readAll()
		if err != nil {
			t.Fatal(err)
		}
		for pid, p := range processes {
			if p.parent == parent {
				return pid
			}
		}
		<-ticker.C
	}
}

func TestTheCallerAndItsAncestorsAreSpared(t *testing.T) {
	// As if this test ran in a shell of a node.
	id := Identity{Mark: "/nowhere", Cgroup: "/nowhere", Namespaces: map[uint64]bool{}}
	processes, err := id.readAll()
	if err != nil {
		t.Fatal(err)
	}
	spared := ancestors(processes, os.Getpid())
	for _, pid := range []int{1, os.Getpid(), os.Getppid()} {
		if !spared[pid] {
			t.Errorf("process %d is not spared", pid)
		}
	}
}

func TestOnlyOwnNamesAreRemoved(t *testing.T) {
	c := testCluster(t, "")
	lookalike := layout.Cluster{Home: c.Home, Name: c.Name + "-node"}
	names := []string{c.FabricNamespace(), c.Node(1).Namespace(), c.Node(17).Namespace(), lookalike.FabricNamespace(), lookalike.Node(1).Namespace()}
	for _, name := range names {
		if _, err := namespace.CreateNetwork(name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = namespace.DeleteNetwork(name) })
	}
	want := []string{c.FabricNamespace(), c.Node(1).Namespace(), c.Node(17).Namespace()}
	if diff := cmp.Diff(want, networkNames(c)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRunOnNothing(t *testing.T) {
	c := testCluster(t, "")
	report, err := Run(t.Context(), c)
	if err != nil || report.Existed {
		t.Errorf("report %+v, %v", report, err)
	}
}

// Two users of one host may have a cluster of the same name each, under different homes; only one of them can run.
func TestTheClusterOfAnotherHomeIsSpared(t *testing.T) {
	running := testCluster(t, "")
	if _, err := namespace.CreateNetwork(running.FabricNamespace()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = namespace.DeleteNetwork(running.FabricNamespace()) })
	pid := 0
	err := namespace.InNetwork(running.FabricNamespace(), func() error {
		pid = begin(t, sleeper(supervise.MarkPrefix(running.Dir())+"etcd"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	other := layout.Cluster{Home: t.TempDir(), Name: running.Name}
	if _, err := Run(t.Context(), other); !errors.Is(err, ErrOtherHome) || !strings.Contains(err.Error(), "set PATCHBAY_HOME="+running.Home+" ") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		t.Error("the other cluster's process was ended")
	}
}

func TestRunOnHalfACluster(t *testing.T) {
	c := testCluster(t, "")
	if err := os.MkdirAll(c.Path("nodes", "node-1", "kubelet"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := namespace.EnsureMounts(namespace.Mounts{Pin: c.Node(1).MountNamespace(), Scratch: []string{"/run"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := namespace.CreateNetwork(c.Node(1).Namespace()); err != nil {
		t.Fatal(err)
	}
	// A process in the node's mount namespace only.
	pid := 0
	err := namespace.OnThread(func() error {
		if err := namespace.EnterMounts(c.Node(1).MountNamespace()); err != nil {
			return err
		}
		pid = begin(t, sleeper())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := Report{Name: c.Name, Existed: true, Processes: 1, Namespaces: []string{c.Node(1).Namespace()}, Directory: c.Dir()}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		t.Error("files are left")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		t.Error("the process is left")
	}
	if mounts, _ := namespace.MountsBelow(c.Dir()); len(mounts) != 0 {
		t.Errorf("mounts are left: %v", mounts)
	}
}
