package agentnet

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/podnetworks"
)

// A real guest boots with a tap in the integration bridge, while its network talks.
func TestMachineOnATap(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "blue")
	machine, peer := newPod(t, b.kube), newPod(t, b.kube)
	b.kube.ask(machine, `[{"name":"blue","interface":"`+podnetworks.InterfaceName("blue")+`"}]`)
	b.kube.ask(peer, "blue")
	b.kube.give(t, machine, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary, Tap: true, Port: "vm/red/boots/blue"})
	b.kube.give(t, peer, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary, IPs: ips("192.168.7.9/24")})
	b.add(t, machine)
	b.add(t, peer)
	taps := &vmdriver.Taps{Ports: lab.ovs, Guard: lab.guard}
	wired, err := taps.Open(t.Context(), machineNIC(t, b, machine, "boots"))
	if err != nil {
		t.Fatal(err)
	}
	console := filepath.Join(t.TempDir(), "console")
	kernel := "../../build/guests/tiny-kernel/boot/"
	qemu := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-machine", "q35", "-m", "192",
		"-kernel", kernel+"vmlinuz", "-initrd", kernel+"initrd", "-append", "console=ttyS0 autologin=root quiet", "-serial", "file:"+console,
		"-netdev", "tap,id=net,fd=3", "-device", "virtio-net-pci,netdev=net,romfile=,host_mtu=1300,mac="+wired.MAC.String()+
			",csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off")
	qemu.ExtraFiles = wired.Files
	qemu.Stderr = os.Stderr
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	wired.Files[0].Close()
	t.Cleanup(func() { _ = qemu.Process.Kill(); _ = qemu.Wait() })
	_ = ping(peer.netns, netip.MustParseAddr("192.168.7.77")) // ARP requests, which reach the guest while it boots
	deadline := time.After(3 * time.Minute)
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		text, err := os.ReadFile(console)
		if bytes.Contains(text, []byte("login:")) || bytes.Contains(text, []byte("# ")) {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("the guest does not boot: %v", errors.Join(err, errors.New(string(text))))
		}
	}
}
