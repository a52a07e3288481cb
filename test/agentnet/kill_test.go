package agentnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// victim is an agent that carries out one ADD and is killed at a step of it.
type victim struct {
	Step     string
	Request  shim.Request
	Pod      string
	Network  podnetworks.Network
	Records  string // directory
	Database string
}

// Steps of ADD at which the victim dies.
const (
	beforePlug   = "device made, not plugged"
	afterPlug    = "plugged, flows not awaited"
	afterInstall = "flows in place, not answered"
	atAnnotation = "annotation being written"
)

// doomed kills its process at a step.
type doomed struct {
	cni.Ports
	step string
}

func die() error {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (d doomed) Plug(ctx context.Context, p ovs.Port) error {
	if d.step == beforePlug {
		return die()
	}
	err := d.Ports.Plug(ctx, p)
	if d.step == afterPlug {
		return die()
	}
	return err
}

func (d doomed) AwaitInstalled(ctx context.Context, name string) error {
	err := d.Ports.AwaitInstalled(ctx, name)
	if d.step == afterInstall {
		return die()
	}
	return err
}

type doomedKube struct {
	*kube
	step string
}

func (d doomedKube) Annotate(ctx context.Context, p cni.PodRef, key, value string) error {
	if d.step == atAnnotation {
		return die()
	}
	return d.kube.Annotate(ctx, p, key, value)
}

// runVictim is the victim's process. It should not return.
func runVictim() int {
	var v victim
	if err := json.Unmarshal([]byte(os.Getenv(victimVariable)), &v); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ports, err := ovs.Connect(context.Background(), v.Database, slog.Default())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	guard, err := link.NewShield()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	store, _, err := podnet.OpenStore(v.Records)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	k := newKube()
	k.networks[v.Pod] = v.Network
	plugin := cni.New(cni.Config{Pods: doomedKube{k, v.Step}, Ports: doomed{ports, v.Step}, Guard: guard, Records: store, MTU: 1400, Log: slog.Default()})
	_, err = plugin.Do(context.Background(), v.Request)
	fmt.Fprintln(os.Stderr, "survived:", err)
	return 3
}

func killDuring(t *testing.T, step string, p aPod, records string) {
	t.Helper()
	data, err := json.Marshal(victim{step, p.request("ADD"), p.name, p.network, records, "unix:" + lab.path("db.sock")})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimVariable+"="+string(data))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the agent was not killed: %v: %s", err, out)
	}
}

// An agent that is killed in the middle of ADD leaves nothing that the next one does not remove, and the pod can be connected
// again: kubelet tries with a new sandbox after DEL for the old one.
func TestKilledInTheMiddleOfAdd(t *testing.T) {
	for _, step := range []string{beforePlug, afterPlug, afterInstall, atAnnotation} {
		t.Run(step, func(t *testing.T) {
			k, records := newKube(), t.TempDir()
			p, peer := newPod(t, k), newPod(t, k)
			killDuring(t, step, p, records)
			b := restart(t, k, records, connect(t))
			// The pod exists no more by the time the agent is back: everything must go.
			if err := b.Recover(t.Context(), func(types.UID) bool { return false }); err != nil {
				t.Fatal(err)
			}
			b.expectNothing(t)
			killDuring(t, step, p, records)
			b = restart(t, k, records, connect(t))
			// The pod still exists: what is complete may stay, and the sandbox can be connected or removed.
			if err := b.Recover(t.Context(), func(types.UID) bool { return true }); err != nil {
				t.Fatal(err)
			}
			b.add(t, peer)
			result := b.add(t, p)
			if err := b.check(p, result); err != nil {
				t.Error(err)
			}
			mustPing(t, p.netns, peer.ip, peer.ip6)
			b.del(t, p)
			b.del(t, peer)
			b.expectNothing(t)
		})
	}
}

// DEL alone cleans up after an agent that was killed, without Recover.
func TestDelAfterAKill(t *testing.T) {
	for _, step := range []string{beforePlug, afterPlug, afterInstall} {
		t.Run(step, func(t *testing.T) {
			k := newKube()
			p := newPod(t, k)
			killDuring(t, step, p, t.TempDir()) // whose record nobody reads
			b := restart(t, k, t.TempDir(), connect(t))
			b.del(t, p)
			b.expectNothing(t)
		})
	}
}

// A restart of the agent disturbs nobody.
func TestRestartKeepsPodsConnected(t *testing.T) {
	k, records := newKube(), t.TempDir()
	b := restart(t, k, records, lab.ovs)
	p, peer := newPod(t, k), newPod(t, k)
	result := b.add(t, p)
	b.add(t, peer)
	again := restart(t, k, records, lab.ovs)
	if err := again.Recover(t.Context(), func(types.UID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if err := again.check(p, result); err != nil {
		t.Error(err)
	}
	mustPing(t, p.netns, peer.ip, peer.ip6)
	// A pod whose namespace is gone, as after a reboot, is disconnected.
	record, _ := again.store.Get(peer.uid())
	record.Netns = "/run/netns/absent"
	if err := again.store.Put(record); err != nil {
		t.Fatal(err)
	}
	if err := again.Recover(t.Context(), func(types.UID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if owned := lab.ovs.Owned("cni/"); len(owned) != 1 {
		t.Errorf("ports are %v, want the living pod's", owned)
	}
}

// ovsdb-server and ovs-vswitchd may be killed too: the agent reconnects and pods keep their ports.
func TestDatabaseRestart(t *testing.T) {
	b := newBench(t)
	p, peer := newPod(t, b.kube), newPod(t, b.kube)
	result := b.add(t, p)
	lab.kill(t, "ovsdb")
	if err := os.Remove(lab.path("db.sock")); err != nil {
		t.Fatal(err)
	}
	err := lab.daemon("ovsdb", "ovsdb-server", "--remote=punix:"+lab.path("db.sock"), "--unixctl="+lab.path("ovsdb.ctl"), lab.path("conf.db"))
	if err != nil {
		t.Fatal(err)
	}
	b.add(t, peer)
	if err := eventually(func() error { return b.check(p, result) }); err != nil {
		t.Error(err)
	}
	mustPing(t, p.netns, peer.ip, peer.ip6)
}
