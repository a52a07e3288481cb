package vmdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/podlab"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/guestshell"
	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/podnetworks"
)

func TestMain(m *testing.M) { os.Exit(launchertest.Main(m)) }

// kernels is where "make image" leaves the tiny guest's kernel and initrd.
const kernels = "../../../build/guests/tiny-kernel/boot"

// bootLimit is how long an emulated guest may take on a busy machine.
const bootLimit = 3 * time.Minute

// TestRealGuest runs a real guest in a real launcher behind a masqueraded pod, through everything a machine sees in its life.
func TestRealGuest(t *testing.T) {
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	pod := launchertest.Start(t, launchertest.Config{})
	boot := filepath.Join(pod.Volumes, protocol.KernelBootVolume, "boot")
	if err := os.MkdirAll(boot, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", kernels+"/vmlinuz", kernels+"/initrd", boot).CombinedOutput(); err != nil {
		t.Fatalf("copy the tiny guest (make it with \"make image\"): %s", out)
	}
	n := realNode(t, lab, pod, bootTiny)
	began := time.Now()
	n.begin()
	n.waitPhase(virtv1.Running)
	t.Logf("Running after %s", time.Since(began).Round(time.Millisecond))

	ask := func(ip netip.Prefix, path string) (string, error) { return get(lab.Client, ip.Addr(), path) }
	await := func(what string, is func() error) {
		t.Helper()
		waitLong(t, what, is)
		t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond))
	}
	await("IPv4 from outside", func() error { _, err := ask(podlab.PodV4, "/healthz"); return err })
	await("IPv6 from outside", func() error { _, err := ask(podlab.PodV6, "/healthz"); return err })
	await("the guest agent", func() error {
		if os := n.vmi().Status.GuestOSInfo; os.ID == "" {
			return fmt.Errorf("guestOSInfo is %+v", os)
		}
		return nil
	})
	t.Run("addresses", func(t *testing.T) { checkAddresses(t, ask) })
	t.Run("status", func(t *testing.T) { checkStatus(t, n.vmi()) })
	t.Run("requests", func(t *testing.T) { checkRequests(t, n) })
	t.Run("console", func(t *testing.T) { inGuest(t, n, "ip -6 route show default", "via fe80::ff:fe00:0") })
	t.Run("bulk", func(t *testing.T) {
		start := time.Now()
		body, err := ask(podlab.PodV4, "/bytes/20000000")
		if err != nil || len(body) != 20000000 {
			t.Errorf("%d bytes: %v", len(body), err)
		}
		t.Logf("%.0f Mbit/s from the guest", 20*8/time.Since(start).Seconds())
	})
	t.Run("hot plug", func(t *testing.T) { checkHotPlug(t, n) })
	t.Run("agent restart", func(t *testing.T) { checkRestart(t, n, ask) })
	t.Run("shutdown", func(t *testing.T) {
		n.delete()
		pod.Signal(t, syscall.SIGTERM) // as the kubelet does: the controller deletes the pod with its instance
		n.waitEvent("Signaled Graceful Shutdown")
		waitLong(t, "the guest's end", func() error {
			if phase := n.vmi().Status.Phase; phase != virtv1.Succeeded {
				return fmt.Errorf("phase %s, events %q", phase, n.events.events)
			}
			return nil
		})
		if code := pod.ExitCode(t); code != 0 {
			t.Errorf("the launcher ended with %d", code)
		}
	})
}

// bootTiny has the instance boot the tiny guest.
func bootTiny(vmi *virtv1.VirtualMachineInstance) {
	vmi.Spec.Domain.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")}
	vmi.Spec.Domain.Firmware = &virtv1.Firmware{KernelBoot: &virtv1.KernelBoot{
		KernelArgs: "console=ttyS0 autologin=root quiet",
		Container:  &virtv1.KernelBootContainer{Image: "tiny-kernel", KernelPath: "/boot/vmlinuz", InitrdPath: "/boot/initrd"},
	}}
	vmi.Spec.Domain.Devices.Rng = &virtv1.Rng{}
	vmi.Spec.Domain.Devices.Interfaces[0].Ports = []virtv1.Port{{Port: 80}}
	vmi.Spec.Hostname = "web-01"
}

// A QEMU with several queues, whose guest never boots, is killed from outside. The pod's end is all that is left to see.
func TestRealQEMUIsKilled(t *testing.T) {
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	pod := launchertest.Start(t, launchertest.Config{})
	n := realNode(t, lab, pod, func(vmi *virtv1.VirtualMachineInstance) {
		vmi.Spec.Domain.CPU = &virtv1.CPU{Cores: 2}
		vmi.Spec.Domain.Devices.NetworkInterfaceMultiQueue = new(true)
	})
	n.begin()
	n.waitPhase(virtv1.Running)
	if queues := n.vmi().Status.Interfaces[0].QueueCount; queues != 2 {
		t.Errorf("%d queues, want 2", queues)
	}
	if err := syscall.Kill(pod.QEMUPID(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ended corev1.Pod
	if err := n.client.Get(t.Context(), types.NamespacedName{Namespace: "default", Name: "virt-launcher-vm-1"}, &ended); err != nil {
		t.Fatal(err)
	}
	ended.Status.Phase = corev1.PodFailed
	ended.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: launcherContainer, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(pod.ExitCode(t))},
	}}}
	if err := n.client.Status().Update(t.Context(), &ended); err != nil {
		t.Fatal(err)
	}
	n.nudge()
	n.waitPhase(virtv1.Failed)
	n.waitEvent("The VirtualMachineInstance crashed. QEMU was killed by signal 9")
	eventually(t, "the end of the tap", func() bool {
		out, err := lab.Pod.Run(t.Context(), "ip", "link", "show", "k6t-eth0")
		return err != nil && strings.Contains(out, "does not exist")
	})
}

// realNode is a node whose pod is the launcher's, with the lab's network.
func realNode(t *testing.T, lab *podlab.Lab, pod *launchertest.Pod, change func(*virtv1.VirtualMachineInstance)) *node {
	t.Helper()
	wirer, err := NewMasquerade(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n := prepareNode(t, change)
	n.wirers = map[string]Wirer{BindingMasquerade: wirer, BindingBridge: loneTaps{t}}
	record := lab.Record(podlab.PodV4, podlab.PodV6)
	record.UID = podUID
	record.Interfaces = append(record.Interfaces, podnet.Interface{Name: podnetworks.InterfaceName("blue"), Attachment: "default/blue"})
	n.pods = podRecords{podUID: record}
	run := (&Driver{Config: Config{KubeletRoot: n.root}}).runDir(podUID)
	if err := errors.Join(os.MkdirAll(filepath.Dir(run), 0o755), os.Symlink(pod.RunPath, run)); err != nil {
		t.Fatal(err)
	}
	return n
}

func get(from *podlab.Netns, ip netip.Addr, path string) (string, error) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			return from.Dial(ctx, network, address)
		},
	}}
	response, err := client.Get("http://" + netip.AddrPortFrom(ip, 80).String() + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// waitLong waits for what a guest does.
func waitLong(t *testing.T, what string, is func() error) {
	t.Helper()
	deadline := time.NewTimer(bootLimit)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := is()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s did not come: %v", what, err)
		}
	}
}

func checkAddresses(t *testing.T, ask func(netip.Prefix, string) (string, error)) {
	text, err := ask(podlab.PodV6, "/state")
	if err != nil {
		t.Fatal(err)
	}
	type nic struct {
		Name      string
		MTU       int
		Addresses []string
		Router    struct{ Router string }
	}
	var state struct {
		Hostname   string
		Interfaces []nic
	}
	if err := json.Unmarshal([]byte(text), &state); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(state.Interfaces, func(n nic) bool { return n.Name != "lo" })
	if i < 0 {
		t.Fatalf("no interface in %s", text)
	}
	eth := state.Interfaces[i]
	for _, address := range []string{"10.0.2.2/24", "fd10:0:2::2/128"} {
		if !slices.Contains(eth.Addresses, address) {
			t.Errorf("the guest has %v, not %s", eth.Addresses, address)
		}
	}
	if state.Hostname != "web-01" || eth.MTU != podlab.MTU || eth.Router.Router != "fe80::ff:fe00:0" {
		t.Errorf("hostname %q, MTU %d, router %q", state.Hostname, eth.MTU, eth.Router.Router)
	}
	for _, client := range []netip.Prefix{podlab.ClientV4, podlab.ClientV6} {
		pod := podlab.PodV4
		if client.Addr().Is6() {
			pod = podlab.PodV6
		}
		if seen, err := ask(pod, "/client"); err != nil || strings.TrimSpace(seen) != client.Addr().String() {
			t.Errorf("the guest sees %q, want %s: %v", seen, client.Addr(), err)
		}
	}
}

func checkStatus(t *testing.T, vmi *virtv1.VirtualMachineInstance) {
	i := vmi.Status.Interfaces[0]
	want := virtv1.VirtualMachineInstanceNetworkInterface{
		Name: "default", MAC: i.MAC, IP: "10.128.0.5", IPs: []string{"10.128.0.5", "fd00:10:128::5"}, PodInterfaceName: "eth0",
		InterfaceName: i.InterfaceName, InfoSource: "domain, guest-agent", QueueCount: 1, LinkState: "up",
	}
	if diff := cmp.Diff(want, i); diff != "" || i.InterfaceName == "" {
		t.Errorf("interface in the guest %q (-want +got):\n%s", i.InterfaceName, diff)
	}
}

func checkRequests(t *testing.T, n *node) {
	machine, err := n.driver.Machine("default", "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	info, err := machine.GuestInfo(t.Context())
	if err != nil || info.Hostname != "web-01" || len(info.SupportedCommands) == 0 {
		t.Errorf("guest information %+v: %v", info, err)
	}
	// Port 22 is not listed, so nobody outside reaches it; a forwarded port is an administrator's own way in.
	conn, err := machine.DialGuest(t.Context(), "tcp", 22)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	banner := make([]byte, 4)
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(conn, banner); err != nil || string(banner) != "SSH-" {
		t.Errorf("the SSH server says %q: %v", banner, err)
	}
	if err := machine.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.waitCondition(virtv1.VirtualMachineInstancePaused, "PausedByUser")
	if err := machine.Unpause(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// checkRestart ends the agent's part and begins a new one; the guest must go on, and be told its address again.
// loneTaps are taps that lead nowhere.
type loneTaps struct{ t *testing.T }

func (w loneTaps) Open(_ context.Context, nic NIC) (*Wired, error) {
	return &Wired{Files: launchertest.Taps(w.t, nic.Queues), MAC: nic.MAC, MTU: 1300}, nil
}

func (w loneTaps) Refresh(_ context.Context, nic NIC) (*Wired, error) {
	return &Wired{MAC: nic.MAC, MTU: 1300}, nil
}

// checkHotPlug gives the guest a card and takes it away three times, once by another agent than the one that gave it.
func checkHotPlug(t *testing.T, n *node) {
	for round := range 3 {
		began := time.Now()
		n.add("blue")
		waitLong(t, "the card in the guest", func() error {
			for _, i := range n.vmi().Status.Interfaces {
				if i.Name == "blue" && i.InterfaceName != "" && i.InfoSource == "domain, guest-agent" {
					return nil
				}
			}
			return fmt.Errorf("interfaces %+v", n.vmi().Status.Interfaces)
		})
		t.Logf("plugged and seen by the guest agent after %s", time.Since(began).Round(time.Millisecond))
		if round == 1 {
			n.stop()
			n.begin()
			n.waitTakenUp()
		}
		inGuest(t, n, "cat /sys/class/net/*/address", "02:00:00:00:00:02")
		inGuest(t, n, "cat /sys/class/net/*/mtu", "1300")
		began = time.Now()
		n.setState("blue", virtv1.InterfaceStateAbsent)
		n.waitInterfacesLong("default")
		t.Logf("unplugged after %s", time.Since(began).Round(time.Millisecond))
		inGuest(t, n, "ls /sys/class/net | grep -c eth", "1")
		n.edit(func(vmi *virtv1.VirtualMachineInstance) {
			vmi.Spec.Domain.Devices.Interfaces, vmi.Spec.Networks = vmi.Spec.Domain.Devices.Interfaces[:1], vmi.Spec.Networks[:1]
		})
	}
}

// waitTakenUp waits until a new agent is connected to the guest.
func (n *node) waitTakenUp() {
	n.t.Helper()
	eventually(n.t, "the machine", func() bool {
		machine, err := n.driver.Machine("default", "vm-1")
		return err == nil && machine.(*attached).check() == nil
	})
}

func (n *node) waitInterfacesLong(want ...string) {
	n.t.Helper()
	waitLong(n.t, "interfaces "+strings.Join(want, ", "), func() error {
		var got []string
		for _, i := range n.vmi().Status.Interfaces {
			got = append(got, i.Name)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("interfaces %q", got)
		}
		return nil
	})
}

func checkRestart(t *testing.T, n *node, ask func(netip.Prefix, string) (string, error)) {
	n.stop()
	if _, err := ask(podlab.PodV4, "/healthz"); err != nil {
		t.Errorf("without an agent: %v", err)
	}
	began := time.Now()
	n.begin()
	n.waitTakenUp()
	t.Logf("taken up after %s", time.Since(began).Round(time.Millisecond))
	inGuest(t, n, "udhcpc -i eth0 -n -q -f 2>&1 || udhcpc -i $(ls /sys/class/net | grep -v lo | head -1) -n -q -f 2>&1", "10.0.2.2")
	if _, err := ask(podlab.PodV6, "/healthz"); err != nil {
		t.Errorf("with a new agent: %v", err)
	}
}

// inGuest runs a command on the guest's serial console.
func inGuest(t *testing.T, n *node, command, want string) {
	t.Helper()
	machine, err := n.driver.Machine("default", "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := machine.DialSocket(t.Context(), protocol.ConsoleName)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	shell := guestshell.New(conn, guestshell.Login{User: "root", Password: "patchbay"})
	defer shell.Close()
	if err := shell.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := shell.Run(ctx, command); err != nil || !strings.Contains(out, want) {
		t.Errorf("%s: %q, want %q: %v", command, out, want, err)
	}
}
