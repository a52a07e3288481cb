// Package cluster holds the tests of the local cluster as a user has it: the built programs start one, everything of it is killed in
// turn, and in the end the host must be as it was.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/cluster"
	"patchbay/test/local"
)

// limit bounds every wait. A loaded machine takes a multiple of the usual seconds.
const limit = 3 * time.Minute

// fixture is one cluster with a home directory of its own.
type fixture struct {
	*local.Cluster
	home string
}

// begin starts a cluster that is removed when the test ends.
func begin(t *testing.T, suffix string, args ...string) *fixture {
	t.Helper()
	f := &fixture{home: newHome(t)}
	name := fmt.Sprintf("it%d%s", os.Getpid()%100000, suffix)
	t.Cleanup(func() { f.remove(t, name) })
	started := time.Now()
	c, err := local.Up(t.Context(), name, 2, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: up took %v", name, time.Since(started).Round(100*time.Millisecond))
	f.Cluster = c
	return f
}

// newHome makes a short directory: paths of sockets have little room.
func newHome(t *testing.T) string {
	t.Helper()
	home, err := os.MkdirTemp("/var/tmp", "pb")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATCHBAY_HOME", filepath.Join(home, "h"))
	t.Cleanup(func() { os.RemoveAll(home) })
	return filepath.Join(home, "h")
}

func (f *fixture) remove(t *testing.T, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if t.Failed() && f.Cluster != nil {
		out, _ := f.Patchbay(ctx, "status", "--name", name)
		t.Logf("status:\n%s", out)
	}
	// Without a cluster object when it never came to be.
	if out, err := exec.CommandContext(ctx, program(t), "down", "--name", name).CombinedOutput(); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
}

// program is the built command line.
func program(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/patchbay")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fixture) dir(elem ...string) string {
	return filepath.Join(append([]string{f.home, f.Name}, elem...)...)
}

// pids are the processes of all components.
func pids(s cluster.Status) map[string]int {
	found := map[string]int{}
	for _, c := range s.Components {
		if c.PID != 0 {
			found[c.Name] = c.PID
		}
	}
	return found
}

// healthy waits until the whole cluster is.
func (f *fixture) healthy(t *testing.T) cluster.Status {
	t.Helper()
	var s cluster.Status
	f.Eventually(t, limit, "the cluster is healthy", func() error {
		s = f.Status(t)
		return troubles(s)
	})
	return s
}

func troubles(s cluster.Status) error {
	var errs []error
	for _, c := range s.Components {
		if !c.Healthy {
			errs = append(errs, fmt.Errorf("%s: %s %s", c.Name, c.Phase, c.Message))
		}
	}
	for _, n := range s.Nodes {
		if !n.Ready {
			errs = append(errs, fmt.Errorf("%s: %s", n.Name, n.Message))
		}
	}
	return errors.Join(errs...)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

func (f *fixture) up(t *testing.T, args ...string) string {
	t.Helper()
	started := time.Now()
	out, err := f.Patchbay(t.Context(), append([]string{"up", "--name", f.Name}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up took %v", time.Since(started).Round(100*time.Millisecond))
	return out
}

// podManifest exercises what pods of virtual machines need: an image volume, memory, a dropped-down container.
const podManifest = `
apiVersion: v1
kind: Pod
metadata: {name: {{.name}}}
spec:
  nodeName: {{.node}}
  containers:
  - name: main
    image: patchbay.io/pause:1
    imagePullPolicy: IfNotPresent
    resources: {limits: {memory: 64Mi, cpu: 100m}}
    securityContext:
      runAsUser: 107
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
    volumeMounts:
    - {name: image, mountPath: /image}
    - {name: memory, mountPath: /memory}
  volumes:
  - name: image
    image: {reference: "patchbay.io/pause:1", pullPolicy: IfNotPresent}
  - name: memory
    emptyDir: {medium: Memory}
`

func (f *fixture) pods(t *testing.T) {
	t.Helper()
	for _, node := range f.Nodes {
		f.Apply(t, "default", podManifest, map[string]string{"name": "on-" + node, "node": node})
	}
	for _, node := range f.Nodes {
		f.PodReady(t, "default", "on-"+node)
	}
}

// containers are the running containers of both pods; they must survive what happens to the components.
func (f *fixture) containers(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, node := range f.Nodes {
		found[node] = f.PodReady(t, "default", "on-"+node).Status.ContainerStatuses[0].ContainerID
	}
	return found
}

// TestLife takes one cluster through everything that may happen to it.
func TestLife(t *testing.T) {
	before := hostState(t)
	f := begin(t, "a", "--mtu", "9000")
	first := f.healthy(t)
	f.pods(t)
	t.Run("status", func(t *testing.T) { f.testStatus(t, first) })
	t.Run("fabric", f.testFabric)
	t.Run("kubectl", f.testKubectl)
	t.Run("up again changes nothing", f.testUpAgain)
	t.Run("a killed component comes back", f.testKillEach)
	t.Run("all components killed", f.testKillAllComponents)
	t.Run("a killed supervisor leaves all running", f.testKillSupervisor)
	t.Run("everything killed", f.testKillEverything)
	t.Run("the host restarts", f.testRestartOfTheHost)
	t.Run("down after a crash", f.testDown)
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host is not as it was (-before +after):\n%s", diff)
	}
	if left := f.traces(t); len(left) > 0 {
		t.Errorf("traces are left:\n%s", strings.Join(left, "\n"))
	}
}

func (f *fixture) testStatus(t *testing.T, s cluster.Status) {
	if s.MTU != 9000 || s.Datapath == "unknown" || len(s.Nodes) != 2 {
		t.Errorf("status is %+v", s)
	}
	for _, c := range s.Components {
		if c.PID != 0 && (c.Log == "" || c.Since.IsZero() || c.Restarts != 0) {
			t.Errorf("%s lacks a log or a start, or was started again: %+v", c.Name, c)
		}
	}
	out, err := f.Patchbay(t.Context(), "status", "--name", f.Name)
	if err != nil || !strings.Contains(out, "node-2/ovs-vswitchd") || !strings.Contains(out, "172.30.0.12") {
		t.Errorf("status prints (%v):\n%s", err, out)
	}
}

func (f *fixture) testFabric(t *testing.T) {
	for _, target := range []string{"172.30.0.12", "fd00:172:30::c", "172.30.0.1"} {
		if _, err := f.InNode(t.Context(), "node-1", "ping", "-c1", "-W3", "-Mdo", "-s8900", target); err != nil {
			t.Error(err)
		}
	}
	// The southbound database speaks to holders of a certificate only.
	out, err := f.InNode(t.Context(), "node-1", "ovn-sbctl", "--timeout=5", "--db=tcp:172.30.0.1:6642", "show")
	if err == nil {
		t.Errorf("the southbound database answers without TLS:\n%s", out)
	}
	pki := f.dir("nodes", "node-1", "pki")
	out, err = f.InNode(t.Context(), "node-1", "ovn-sbctl", "--timeout=10", "--db=ssl:172.30.0.1:6642", "--private-key="+pki+"/ovn-controller.key",
		"--certificate="+pki+"/ovn-controller.crt", "--ca-cert="+f.dir("pki", "ovn-ca.crt"), "--bare", "--columns=name", "list", "chassis")
	if err != nil || !strings.Contains(out, "node-1") || !strings.Contains(out, "node-2") {
		t.Errorf("chassis are %q, %v", out, err)
	}
}

func (f *fixture) testKubectl(t *testing.T) {
	out, err := f.Kubectl(t.Context(), "get", "nodes", "-o", "name")
	if err != nil || out != "node/node-1\nnode/node-2\n" {
		t.Errorf("nodes are %q, %v", out, err)
	}
	for _, node := range f.Nodes {
		// Logs go through the API server to the kubelet and prove both their identities.
		if out, err := f.Kubectl(t.Context(), "logs", "on-"+node); err != nil {
			t.Errorf("logs: %q, %v", out, err)
		}
	}
	user := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", user)
	f.up(t, "--merge-kubeconfig")
	merged, err := os.ReadFile(user)
	if err != nil || !strings.Contains(string(merged), "current-context: patchbay-"+f.Name) {
		t.Errorf("the user's file has (%v):\n%s", err, merged)
	}
}

func (f *fixture) testUpAgain(t *testing.T) {
	before := pids(f.healthy(t))
	f.up(t, "--nodes", "2")
	if diff := cmp.Diff(before, pids(f.healthy(t))); diff != "" {
		t.Errorf("processes changed (-before +after):\n%s", diff)
	}
	if _, err := f.Patchbay(t.Context(), "up", "--name", f.Name, "--nodes", "3"); err == nil || !strings.Contains(err.Error(), "has --nodes 2, not 3") {
		t.Errorf("another number of nodes: %v", err)
	}
	if _, err := f.Patchbay(t.Context(), "supervise", "--name", f.Name); err == nil || !strings.Contains(err.Error(), "has a supervisor already") {
		t.Errorf("a second supervisor: %v", err)
	}
}

func (f *fixture) testKillEach(t *testing.T) {
	containers := f.containers(t)
	before := f.healthy(t)
	for _, c := range before.Components {
		if c.PID == 0 || c.Name == "supervisor" {
			continue
		}
		kill(t, c.PID)
		if now := f.Replaced(t, limit, c); now.Restarts != c.Restarts+1 {
			t.Errorf("%s was started %d times and is %+v", c.Name, c.Restarts, now)
		}
	}
	f.healthy(t)
	if diff := cmp.Diff(containers, f.containers(t)); diff != "" {
		t.Errorf("containers were replaced (-before +after):\n%s", diff)
	}
}

func (f *fixture) testKillAllComponents(t *testing.T) {
	containers := f.containers(t)
	for name, pid := range pids(f.healthy(t)) {
		if name != "supervisor" {
			kill(t, pid)
		}
	}
	started := time.Now()
	f.healthy(t)
	t.Logf("healthy after %v", time.Since(started).Round(100*time.Millisecond))
	if diff := cmp.Diff(containers, f.containers(t)); diff != "" {
		t.Errorf("containers were replaced (-before +after):\n%s", diff)
	}
}

func (f *fixture) testKillSupervisor(t *testing.T) {
	before := pids(f.healthy(t))
	kill(t, before["supervisor"])
	f.Eventually(t, limit, "status tells", func() error {
		s := f.Status(t)
		if s.Healthy || f.Component(t, "supervisor").Healthy {
			return errors.New("status says that all is well")
		}
		for name, pid := range pids(s) {
			if before[name] != pid {
				return fmt.Errorf("%s was process %d and is %d", name, before[name], pid)
			}
		}
		return nil
	})
	// One that ends while nobody looks is started by the next up; all others are taken over.
	kill(t, before["kube-scheduler"])
	f.up(t)
	after := pids(f.healthy(t))
	for _, name := range []string{"supervisor", "kube-scheduler"} {
		if before[name] == after[name] {
			t.Errorf("%s is still process %d", name, after[name])
		}
		delete(before, name)
		delete(after, name)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("processes changed (-before +after):\n%s", diff)
	}
}

func (f *fixture) testKillEverything(t *testing.T) {
	f.killEverything(t)
	f.Eventually(t, limit, "status knows of no process", func() error {
		if s := f.Status(t); s.Healthy || len(pids(s)) != 0 {
			return fmt.Errorf("processes %v", pids(s))
		}
		return nil
	})
	f.up(t)
	f.healthy(t)
	f.containers(t)
}

// testRestartOfTheHost takes away what a restart takes: processes, namespaces, mounts and control groups.
func (f *fixture) testRestartOfTheHost(t *testing.T) {
	f.killEverything(t)
	for _, mount := range f.mounts(t) {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Error(err)
		}
	}
	f.up(t)
	f.healthy(t)
	f.containers(t)
}

func (f *fixture) testDown(t *testing.T) {
	kill(t, pids(f.Status(t))["supervisor"])
	out, err := f.Patchbay(t.Context(), "down", "--name", f.Name)
	if err != nil || !strings.Contains(out, "is removed") {
		t.Errorf("down prints %q, %v", out, err)
	}
	out, err = f.Patchbay(t.Context(), "down", "--name", f.Name)
	if err != nil || !strings.Contains(out, "nothing to remove") {
		t.Errorf("the second down prints %q, %v", out, err)
	}
}

// TestInterruptedUp interrupts the first `up` of one cluster while another one runs.
func TestInterruptedUp(t *testing.T) {
	before := hostState(t)
	f := begin(t, "b")
	running := pids(f.healthy(t))
	other := &fixture{Cluster: &local.Cluster{Name: f.Name + "x"}, home: f.home}
	cmd := exec.CommandContext(t.Context(), program(t), "up", "--name", other.Name, "--api-port", freePort(t))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Eventually(t, limit, "the second cluster has begun", func() error {
		_, err := os.Stat(other.dir("run", "etcd.unit.json"))
		return err
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), "`patchbay up` goes on from here") {
		t.Errorf("interrupted, it ends with %v and says:\n%s", err, stderr.String())
	}
	if out, err := f.Patchbay(t.Context(), "up", "--name", other.Name); err != nil {
		t.Errorf("the second try: %v\n%s", err, out)
	}
	if out, err := f.Patchbay(t.Context(), "down", "--name", other.Name); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
	if left := other.traces(t); len(left) > 0 {
		t.Errorf("traces of the second cluster are left:\n%s", strings.Join(left, "\n"))
	}
	if diff := cmp.Diff(running, pids(f.healthy(t))); diff != "" {
		t.Errorf("processes of the first cluster changed (-before +after):\n%s", diff)
	}
	if err := f.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("the host is not as it was (-before +after):\n%s", diff)
	}
}
