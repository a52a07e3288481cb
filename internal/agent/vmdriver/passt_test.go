package vmdriver

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/podlab"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
)

func passtNIC(change func(*NIC)) NIC {
	mac, _ := net.ParseMAC("02:00:00:00:00:07")
	nic := NIC{
		VMI:       &virtv1.VirtualMachineInstance{},
		Interface: virtv1.Interface{Name: "a", Binding: &virtv1.PluginBinding{Name: BindingPasst}},
		Network:   virtv1.Network{Name: "a", NetworkSource: virtv1.NetworkSource{Pod: &virtv1.PodNetwork{}}},
		MAC:       mac,
		DNS:       guestnet.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Search: []string{"a.svc", "svc"}},
		Pod: podnet.Pod{Interfaces: []podnet.Interface{
			{Name: "eth0", IPs: []netip.Prefix{netip.MustParsePrefix("10.244.1.5/24")}, MTU: 1400},
			{Name: "ovn-udn1", Default: true, MTU: 1300, IPs: []netip.Prefix{netip.MustParsePrefix("10.224.0.9/16"), netip.MustParsePrefix("fd00:224::9/64")},
				Gateways: []netip.Addr{netip.MustParseAddr("10.224.0.1"), netip.MustParseAddr("fd00:224::1")}},
		}},
	}
	if change != nil {
		change(&nic)
	}
	return nic
}

func TestPasstJoinsThePrimaryNetwork(t *testing.T) {
	wired, err := Passt{}.Open(t.Context(), passtNIC(nil))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(wired.Passt.Args, " ")
	want := "--interface ovn-udn1 --mtu 1300 --no-map-gw" +
		" --address 10.224.0.9 --netmask 16 --outbound-if4 ovn-udn1 --gateway 10.224.0.1" +
		" --address fd00:224::9 --gateway fe80::ff:fe00:0 --outbound-if6 ovn-udn1 --dns 10.96.0.10 --search a.svc svc"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	if wired.PodInterface != "ovn-udn1" || fmt.Sprint(wired.IPs) != "[10.224.0.9 fd00:224::9]" || wired.MTU != 1300 {
		t.Errorf("wired %+v", wired)
	}
}

func TestPasstPorts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*NIC)
		want   protocol.Passt
	}{
		"all": {nil, protocol.Passt{}},
		"listed": {func(n *NIC) {
			n.Interface.Ports = []virtv1.Port{{Port: 8080, Protocol: "TCP"}, {Port: 22}, {Port: 53, Protocol: "UDP"}, {Port: 22}}
		}, protocol.Passt{TCP: []uint16{22, 8080}, UDP: []uint16{53}}},
		"mesh": {func(n *NIC) { n.VMI.Annotations = map[string]string{istioInject: "true"} },
			protocol.Passt{Except: []uint16{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}}},
	} {
		t.Run(name, func(t *testing.T) {
			wired, err := Passt{}.Open(t.Context(), passtNIC(c.change))
			if err != nil {
				t.Fatal(err)
			}
			c.want.Args = wired.Passt.Args
			if diff := cmp.Diff(c.want, *wired.Passt); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPasstRefusals(t *testing.T) {
	for want, change := range map[string]func(*NIC){
		"passt joins the pod network only": func(n *NIC) { n.Network.NetworkSource = virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{}} },
		"has no network interface":         func(n *NIC) { n.Pod.Interfaces = nil },
		"waits for a tap":                  func(n *NIC) { n.Pod.Interfaces[1].Tap = true },
		"has no address":                   func(n *NIC) { n.Pod.Interfaces[1].IPs = nil },
	} {
		if _, err := (Passt{}).Open(t.Context(), passtNIC(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRealGuestBehindPasst boots a guest whose only way out is a real passt in its pod.
func TestRealGuestBehindPasst(t *testing.T) {
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	for _, args := range []string{"sysctl -q net.ipv4.ip_unprivileged_port_start=0", "sysctl -q net.ipv4.ping_group_range=107 107"} {
		words := strings.SplitN(args, " ", 3)
		if out, err := lab.Pod.Run(t.Context(), words[0], words[1:]...); err != nil {
			t.Fatalf("%s: %s", args, out)
		}
	}
	pod := launchertest.Start(t, launchertest.Config{Netns: lab.Pod.Path})
	boot := filepath.Join(pod.Volumes, protocol.KernelBootVolume, "boot")
	if err := os.MkdirAll(boot, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", kernels+"/vmlinuz", kernels+"/initrd", boot).CombinedOutput(); err != nil {
		t.Fatalf("copy the tiny guest (make it with \"make image\"): %s", out)
	}
	n := realNode(t, lab, pod, func(vmi *virtv1.VirtualMachineInstance) {
		bootTiny(vmi)
		i := &vmi.Spec.Domain.Devices.Interfaces[0]
		i.InterfaceBindingMethod, i.Binding, i.Ports = virtv1.InterfaceBindingMethod{}, &virtv1.PluginBinding{Name: BindingPasst}, nil
	})
	n.wirers[BindingPasst] = Passt{}
	n.begin()
	n.waitPhase(virtv1.Running)
	ask := func(ip netip.Prefix, path string) (string, error) { return get(lab.Client, ip.Addr(), path) }
	answers := func() error { _, err := ask(podlab.PodV4, "/healthz"); return err }
	waitLong(t, "IPv4 from outside", answers)
	waitLong(t, "IPv6 from outside", func() error { _, err := ask(podlab.PodV6, "/healthz"); return err })
	t.Run("addresses", func(t *testing.T) {
		inGuest(t, n, "ip addr show dev eth0", "10.128.0.5/23")
		inGuest(t, n, "ip link show dev eth0", "mtu 1400")
		inGuest(t, n, "ip route show default", "via 10.128.0.1")
		inGuest(t, n, "ip -6 route show default", "via fe80::")
		inGuest(t, n, "ip -6 addr show dev eth0", "fd00:10:128::5/")
	})
	t.Run("source addresses", func(t *testing.T) {
		for pod, client := range map[netip.Prefix]netip.Prefix{podlab.PodV4: podlab.ClientV4, podlab.PodV6: podlab.ClientV6} {
			if seen, err := ask(pod, "/client"); err != nil || strings.TrimSpace(seen) != client.Addr().String() {
				t.Errorf("the guest sees %q, want %s: %v", seen, client.Addr(), err)
			}
		}
	})
	t.Run("out", func(t *testing.T) {
		inGuest(t, n, "ping -c 1 -W 5 10.128.0.9", "0% packet loss")
		inGuest(t, n, "ping -6 -c 1 -W 5 fd00:10:128::9", "0% packet loss")
	})
	t.Run("killed", func(t *testing.T) {
		killPasst(t, pod)
		began := time.Now()
		defer func() { t.Logf("after %s", time.Since(began)) }()
		waitLong(t, "IPv4 after passt was killed", answers)
	})
	t.Run("no privileges", func(t *testing.T) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", passtPID(t, pod)))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t107"} {
			if !strings.Contains(string(status), line) {
				t.Errorf("no %q in\n%s", line, status)
			}
		}
	})
}

func passtPID(t *testing.T, pod *launchertest.Pod) (pid int) {
	t.Helper()
	launchertest.Eventually(t, "passt runs", func() (err error) {
		pid, err = pod.Child("passt")
		return err
	})
	return pid
}

func killPasst(t *testing.T, pod *launchertest.Pod) {
	t.Helper()
	old := passtPID(t, pod)
	process, err := os.FindProcess(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	launchertest.Eventually(t, "another passt runs", func() error {
		if pid, err := pod.Child("passt"); err != nil || pid == old {
			return fmt.Errorf("passt is %d, was %d: %v", pid, old, err)
		}
		return nil
	})
}
