package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/supervise"
	"patchbay/internal/settings"
)

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestSpec(t *testing.T) {
	cases := map[string]struct {
		spec Spec
		want string
	}{
		"good":     {Spec{Nodes: 2, APIPort: 6443, MTU: 1500}, ""},
		"jumbo":    {Spec{Nodes: 1, APIPort: 1, MTU: 9000}, ""},
		"no nodes": {Spec{Nodes: -1, APIPort: 1, MTU: 1500}, "--nodes is -1; choose 1 to 200"},
		"all wrong": {Spec{Nodes: 201, APIPort: 65536, MTU: 1300},
			"--nodes is 201; choose 1 to 200\n--api-port is 65536; choose 1 to 65535\n--mtu is 1300; choose 1380 to 65535"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, text(c.spec.validate())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesOfANewCluster(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	spec := Spec{Name: "c", Nodes: 1, APIPort: 7443, MTU: 9000}
	for range 2 {
		if err := spec.writeFiles(c); err != nil {
			t.Fatal(err)
		}
	}
	read, err := readSpec(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec, read); diff != "" {
		t.Errorf("spec (-written +read):\n%s", diff)
	}
	s, err := settings.Load(c.SettingsFile())
	if err != nil {
		t.Fatal(err)
	}
	if s.PodMTU != 8900 || s.ClusterName != "c" || s.APIServer != "https://172.30.0.1:6443" {
		t.Errorf("settings are %+v", s)
	}
	names, err := Names(c.Home)
	if diff := cmp.Diff([]string{"c"}, names); diff != "" || err != nil {
		t.Errorf("clusters: %v, %v", names, err)
	}
}

func TestWhatUpMakesOfARequest(t *testing.T) {
	existing := Spec{Name: "c", Nodes: 2, APIPort: 7443, MTU: 1500}
	cases := map[string]struct {
		request  UpRequest
		existing *Spec
		want     Spec
		wantErr  string
	}{
		"new, defaults":         {UpRequest{}, nil, Spec{Name: "c", Nodes: 2, APIPort: 6443, MTU: 1500}, ""},
		"new, all chosen":       {UpRequest{Nodes: 3, APIPort: 1234, MTU: 9000, Expose: true}, nil, Spec{Name: "c", Nodes: 3, APIPort: 1234, MTU: 9000, Expose: true}, ""},
		"as it is":              {UpRequest{}, &existing, existing, ""},
		"same":                  {UpRequest{Nodes: 2, MTU: 1500}, &existing, existing, ""},
		"another port is fine":  {UpRequest{APIPort: 9999}, &existing, existing, ""},
		"other number of nodes": {UpRequest{Nodes: 3}, &existing, existing, "cluster \"c\" has --nodes 2, not 3; leave the flag out, or remove the cluster with `patchbay down --name c` first"},
		"exposed later":         {UpRequest{Expose: true}, &existing, existing, "cluster \"c\" was started without --expose; remove it with `patchbay down --name c` first"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.request.Cluster = layout.Cluster{Home: t.TempDir(), Name: "c"}
			if c.existing != nil {
				if err := c.existing.write(c.request.Cluster); err != nil {
					t.Fatal(err)
				}
			}
			got, isNew, err := c.request.spec()
			if diff := cmp.Diff(c.wantErr, text(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.want, got); diff != "" || isNew != (c.existing == nil) {
				t.Errorf("new: %v; spec (-want +got):\n%s", isNew, diff)
			}
		})
	}
}

func TestADirectoryOfSomebodyElseIsRefused(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	if err := os.MkdirAll(c.Path("photos"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, _, err := UpRequest{Cluster: c}.spec()
	if err == nil || !strings.Contains(err.Error(), "is not empty and holds no cluster; choose another --name") {
		t.Errorf("up: %v", err)
	}
	if _, err := Down(t.Context(), c); err == nil || !strings.Contains(err.Error(), "holds no cluster") {
		t.Errorf("down: %v", err)
	}
	if _, err := os.Stat(c.Path("photos")); err != nil {
		t.Error("the files are gone")
	}
}

func TestDownOfNothingLeavesNothing(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	report, err := Down(t.Context(), layout.Cluster{Home: home, Name: fmt.Sprintf("dn%d", os.Getpid())})
	if err != nil || report.Existed {
		t.Errorf("report %+v, %v", report, err)
	}
	if _, err := os.Stat(home); err == nil {
		t.Error("down made a directory and left it")
	}
}

func TestLock(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	first, err := lockCluster(c)
	if err != nil {
		t.Fatal(err)
	}
	want := "another `patchbay up` or `patchbay down` works on cluster \"c\"; wait until it is done"
	if _, err := lockCluster(c); text(err) != want {
		t.Errorf("second: %v", err)
	}
	other, err := lockCluster(layout.Cluster{Home: c.Home, Name: "d"})
	if err != nil {
		t.Errorf("another cluster: %v", err)
	}
	other.release()
	if err := first.remove(); err != nil {
		t.Fatal(err)
	}
	again, err := lockCluster(c)
	if err != nil {
		t.Fatalf("after the end: %v", err)
	}
	again.release()
}

func TestProxyCarriesHalfClosedConnections(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		conn, err := server.Accept()
		if err != nil {
			return
		}
		request, _ := io.ReadAll(conn) // ends when the client has said all
		fmt.Fprintf(conn, "heard %s", request)
		conn.Close()
	}()
	ctx, cancel := context.WithCancel(t.Context())
	p := &proxy{listen: "127.0.0.1:0", dial: (&net.Dialer{}).DialContext, target: server.Addr().String(), log: slog.New(slog.DiscardHandler)}
	listener, err := net.Listen("tcp", p.listen)
	if err != nil {
		t.Fatal(err)
	}
	p.wg.Go(func() { p.serve(ctx, listener) })
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fmt.Fprint(client, "hello")
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(client)
	if string(answer) != "heard hello" || err != nil {
		t.Errorf("answer is %q, %v", answer, err)
	}
	cancel()
	p.wait()
}

func TestProxyWithATakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := &proxy{listen: taken.Addr().String(), log: slog.New(slog.DiscardHandler)}
	if err := p.start(t.Context()); err == nil || !strings.Contains(err.Error(), "end the program that has the port") {
		t.Errorf("got %v", err)
	}
}

func TestProgressReadsStateFiles(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	self, err := supervise.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	gone := self
	gone.StartTicks++
	writeState(t, c, supervise.State{Name: "alive", Phase: supervise.Ready, Process: &self})
	writeState(t, c, supervise.State{Name: "gone", Phase: supervise.Ready, Process: &gone})
	writeState(t, c, supervise.State{Name: "step", Phase: supervise.Ready})
	writeState(t, c, supervise.State{Name: "behind", Phase: supervise.Waiting, Message: "waits for gone"})
	writeState(t, c, supervise.State{Name: "sick", Phase: supervise.Starting, Message: "no answer"})
	command := []string{"/bin/x"}
	units := []supervise.Unit{{Name: "alive", Command: command}, {Name: "gone", Command: command}, {Name: "step"}, {Name: "behind", Command: command}, {Name: "sick", Command: command}}
	progress, err := readProgress(c, units, map[string]int{})
	if err != nil {
		t.Fatal(err)
	}
	if progress.Ready != 2 || progress.Total != 5 {
		t.Errorf("progress is %+v", progress)
	}
	if diff := cmp.Diff([]string{"gone", "behind", "sick (no answer)"}, progress.reasons()); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

func TestACrashingComponentEndsUp(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	if err := os.MkdirAll(c.Logs(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(supervise.LogPath(c.Logs(), "etcd"), []byte("one\nno space left on device\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	units, before := []supervise.Unit{{Name: "etcd", Command: []string{"/bin/x"}}}, map[string]int{}
	// What it did before this `up` does not count.
	writeState(t, c, supervise.State{Name: "etcd", Phase: supervise.Backoff, Restarts: 7})
	if _, err := readProgress(c, units, before); err != nil {
		t.Error(err)
	}
	writeState(t, c, supervise.State{Name: "etcd", Phase: supervise.Backoff, Restarts: 12, LastExit: "exit status 1"})
	_, err := readProgress(c, units, before)
	if err == nil || !strings.HasPrefix(err.Error(), "etcd does not stay up (exit status 1)") || !strings.HasSuffix(err.Error(), "no space left on device") {
		t.Errorf("got %v", err)
	}
}

func TestAStepThatKeepsFailingEndsUp(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	units := []supervise.Unit{{Name: "node-1/namespaces"}}
	state := supervise.State{Name: "node-1/namespaces", Phase: supervise.Backoff, Failures: 7, Message: "no space left on device"}
	writeState(t, c, state)
	before := map[string]int{}
	// What failed before this `up` may have been mended.
	if _, err := readProgress(c, units, before); err != nil {
		t.Error(err)
	}
	state.Failures += crashes
	writeState(t, c, state)
	if _, err := readProgress(c, units, before); err == nil || !strings.HasPrefix(err.Error(), "node-1/namespaces cannot be set up: no space left on device") {
		t.Errorf("got %v", err)
	}
}

func writeState(t *testing.T, c layout.Cluster, s supervise.State) {
	t.Helper()
	if err := os.MkdirAll(c.Run(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := supervise.WriteState(c.Run(), s); err != nil {
		t.Fatal(err)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var log bytes.Buffer
	for i := range 2000 {
		fmt.Fprintf(&log, "line %d\n", i)
	}
	if err := os.WriteFile(path, log.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(lastLines(path), "\n")
	if len(lines) != 12 || lines[0] != "line 1988" || lines[11] != "line 1999" {
		t.Errorf("lines are %q", lines)
	}
	if got := lastLines(path + "-none"); !strings.Contains(got, "no such file") {
		t.Errorf("a missing file gives %q", got)
	}
}

func TestAReplacedProgramIsOutdated(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	self, err := supervise.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	writeState(t, c, supervise.State{Name: "step"})
	writeState(t, c, supervise.State{Name: "gone", Command: []string{"/no/such/program"}})
	writeState(t, c, supervise.State{Name: "current", Command: []string{os.Args[0]}, Process: &self})
	if outdated(c) {
		t.Error("the programs on disk are the running ones")
	}
	writeState(t, c, supervise.State{Name: "older", Command: []string{"/bin/sh"}, Process: &self})
	if !outdated(c) {
		t.Error("a process whose program is not the one on disk is not noticed")
	}
}

func TestStatusWithoutACluster(t *testing.T) {
	_, err := ReadStatus(t.Context(), layout.Cluster{Home: t.TempDir(), Name: "c"})
	if !errors.Is(err, errNoCluster) || text(err) != "cluster \"c\": there is no such cluster; start one with `patchbay up`" {
		t.Errorf("got %v", err)
	}
}

func TestMergedFilesAreRemembered(t *testing.T) {
	c := layout.Cluster{Home: t.TempDir(), Name: "c"}
	spec := Spec{Name: "c", Nodes: 1, APIPort: 7443, MTU: 1500}
	if err := spec.writeFiles(c); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "my config")
	t.Setenv("KUBECONFIG", file)
	for range 2 {
		if got, err := MergeKubeconfig(c); got != file || err != nil {
			t.Fatalf("merged into %q, %v", got, err)
		}
	}
	t.Setenv("KUBECONFIG", "/nowhere")
	if err := unmergeKubeconfig(c); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(data), "patchbay-c") {
		t.Errorf("the file holds (%v):\n%s", err, data)
	}
}
