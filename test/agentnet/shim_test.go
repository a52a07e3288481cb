package agentnet

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"patchbay/internal/agent/cni"
)

// buildShim builds patchbay-cni as the product does.
func buildShim(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), cni.PluginName)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "patchbay/cmd/patchbay-cni")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return program
}

// execShim runs the plugin as a container runtime does.
func execShim(program, command string, p aPod, conf string) (string, error) {
	r := p.request(command)
	cmd := exec.Command(program)
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + r.ContainerID, "CNI_NETNS=" + r.Netns, "CNI_IFNAME=" + r.IfName, "CNI_ARGS=" + r.Args}
	cmd.Stdin = strings.NewReader(conf)
	out, err := cmd.Output()
	return string(out), err
}

// The runtime starts the program for every pod, so it must start in a few milliseconds. The quickest of many runs shows what
// the program costs on a machine that does other things too.
func TestShimStartsQuickly(t *testing.T) {
	program := buildShim(t)
	var took []time.Duration
	for range 50 {
		begun := time.Now()
		if out, err := execShim(program, "VERSION", aPod{}, `{"cniVersion":"1.1.0"}`); err != nil {
			t.Fatal(err, out)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	t.Logf("patchbay-cni start to end: quickest %s, median %s", took[0], took[len(took)/2])
	if took[0] > 10*time.Millisecond {
		t.Errorf("the quickest start took %s, want at most 10 ms", took[0])
	}
}

// Everything that kubelet's runtime does: configuration file, plugin program, socket, ADD, STATUS, GC, DEL, and an agent that is
// away in between.
func TestThroughTheRuntimesInterface(t *testing.T) {
	program := buildShim(t)
	b := newBench(t)
	p := newPod(t, b.kube)
	dir := t.TempDir()
	socket := filepath.Join(lab.dir, "cni.sock")
	must(t, cni.Install(program, filepath.Join(dir, "bin"), filepath.Join(dir, "net.d"), socket))
	conf := pluginConf(t, filepath.Join(dir, "net.d", cni.ConfigName))
	program = filepath.Join(dir, "bin", cni.PluginName)

	out, err := execShim(program, "ADD", p, conf)
	if err == nil || !strings.Contains(out, "the node agent is not running yet; kubelet retries") || !strings.Contains(out, `"code":11`) {
		t.Errorf("without an agent: %v, %s", err, out)
	}
	stop := startServer(t, b, socket)
	out, err = execShim(program, "ADD", p, conf)
	if err != nil || !strings.Contains(out, p.ip.String()+"/23") {
		t.Fatalf("ADD: %v, %s", err, out)
	}
	for _, command := range []string{"STATUS", "GC"} {
		full := strings.Replace(conf, "{", `{"cni.dev/valid-attachments":[{"containerID":"`+p.container+`","ifname":"eth0"}],`, 1)
		if out, err := execShim(program, command, p, full); err != nil || out != "" {
			t.Errorf("%s: %v, %s", command, err, out)
		}
	}
	stop()
	if out, err := execShim(program, "STATUS", p, conf); err != nil {
		t.Errorf("STATUS just after the agent stopped: %v, %s", err, out)
	}
	if out, err := execShim(program, "DEL", p, conf); err == nil || !strings.Contains(out, "kubelet retries") {
		t.Errorf("DEL without an agent: %v, %s", err, out)
	}
	startServer(t, b, socket)
	if out, err := execShim(program, "DEL", p, conf); err != nil {
		t.Errorf("DEL: %v, %s", err, out)
	}
	b.expectNothing(t)
}

// A shim that goes away, because the runtime gave up, cancels its request; what was begun is undone.
func TestShimThatGoesAwayCancels(t *testing.T) {
	program := buildShim(t)
	b := newBench(t)
	p := podWithoutPort(t, b.kube)
	socket := filepath.Join(lab.dir, "cni.sock")
	startServer(t, b, socket)
	cmd := exec.Command(program)
	r := p.request("ADD")
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + r.ContainerID, "CNI_NETNS=" + r.Netns, "CNI_IFNAME=eth0", "CNI_ARGS=" + r.Args}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","socket":"` + socket + `"}`)
	must(t, cmd.Start())
	must(t, eventually(func() error {
		if len(lab.ovs.Owned("cni/")) == 0 {
			return os.ErrNotExist
		}
		return nil
	}))
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	must(t, eventually(func() error {
		if len(lab.ovs.Owned("cni/")) > 0 {
			return os.ErrExist
		}
		return nil
	}))
	b.del(t, p)
	b.expectNothing(t)
}

// startServer serves requests until the returned function is called or the test ends.
func startServer(t *testing.T, b *bench, socket string) func() {
	t.Helper()
	server, err := cni.Listen(socket, b.Do, lab.log)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx); close(done) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// pluginConf makes the plugin's configuration from the list, as libcni does.
func pluginConf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	must(t, json.Unmarshal(data, &list))
	if list.CNIVersion != "1.1.0" || list.Name != "ovn-kubernetes" || len(list.Plugins) != 1 || list.Plugins[0]["type"] != cni.PluginName {
		t.Fatalf("the configuration is %s", data)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	var out bytes.Buffer
	must(t, json.NewEncoder(&out).Encode(conf))
	return out.String()
}
