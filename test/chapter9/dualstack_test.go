package chapter9

import (
	"fmt"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// staticIPv6 is the documented cloud-init document: DHCP for IPv4, a static address for IPv6.
func staticIPv6(address, gateway string) string {
	return fmt.Sprintf("version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    addresses: [ %s ]\n    gateway6: %s\n", address, gateway)
}

// 9.2.2: masquerade with dual stack.
func TestDualStack(t *testing.T) {
	ns := cluster.Namespace(t)
	web := machine{name: "web", iface: "ports: [{port: 80}]", networkData: staticIPv6("fd10:0:2::2/120", "fd10:0:2::1")}
	created := web.apply(t, ns)
	machine{name: "block", network: `vmIPv6NetworkCIDR: "fd20:0:3::7/120"`, networkData: staticIPv6("fd20:0:3::2/120", "fd20:0:3::1")}.apply(t, ns)
	machine{name: "small", network: `vmIPv6NetworkCIDR: "fd20:0:4::/127"`}.apply(t, ns)
	machine{name: "auto"}.apply(t, ns)
	box := pod(t, ns, "client", "node-2")
	guest := cluster.Guest(t, ns, "web")
	ips := cluster.Running(t, ns, "web").Status.Interfaces[0].IPs

	t.Run("9.2.2-K1 create succeeds", func(t *testing.T) {
		if want := "virtualmachine.kubevirt.io/web created"; strings.TrimSpace(created) != want {
			t.Errorf("printed %q, want %q", created, want)
		}
	})
	t.Run("9.2.2-K2 both families are listed", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "vmi", "web", "-n", ns, "-o", "jsonpath={.status.interfaces[*].ipAddresses}")
		if want := fmt.Sprintf(`["%s","%s"]`, ipv4(ips), ipv6(ips)); err != nil || out != want {
			t.Errorf("printed %q, %v; want %q", out, err, want)
		}
	})
	t.Run("9.2.2-C10 an IPv6 is listed", func(t *testing.T) {
		pod := cluster.LauncherPod(t, cluster.Running(t, ns, "web"))
		if len(pod.Status.PodIPs) != 2 || pod.Status.PodIPs[1].IP != ipv6(ips) || ipv6(ips) == "" {
			t.Errorf("the VMI lists %v, the pod has %v", ips, pod.Status.PodIPs)
		}
	})
	t.Run("9.2.2-C8 the cluster is dual stack", func(t *testing.T) {
		if ipv4(box.ips) == "" || ipv6(box.ips) == "" {
			t.Errorf("a pod has %v", box.ips)
		}
	})
	t.Run("9.2.2-C1 cloud-init sets the IPv6 address", func(t *testing.T) {
		guest.Eventually(cluster, boot, "ip -6 -o addr show eth0 scope global", contains("inet6 fd10:0:2::2/120"))
	})
	t.Run("9.2.2-C4 default address and gateway", func(t *testing.T) {
		if route := guest.Run("ip -6 route show default"); !strings.Contains(route, "via fd10:0:2::1") {
			t.Errorf("default route %q, want one via fd10:0:2::1", route)
		}
		guest.Run("ping -6 -c1 -W5 fd10:0:2::1")
	})
	t.Run("9.2.2-C9 a listed port is open on both families", func(t *testing.T) {
		for _, ip := range ips {
			waitForWeb(t, box, ip)
			box.expect(ip, 80, answered)
			box.expect(ip, 22, refused)
		}
	})
	t.Run("9.2.2-C7 both families lead to the VM and back", func(t *testing.T) {
		for i, ip := range ips {
			seen, err := box.run("curl -sfm5 http://" + bracket(ip) + "/client")
			if err != nil || seen != box.ips[i] {
				t.Errorf("the guest saw %q (%v), want the client's own address %s", seen, err, box.ips[i])
			}
		}
	})
	t.Run("9.2.2-C6 the inner addresses are not visible outside", func(t *testing.T) {
		for _, inner := range []string{"10.0.2.2", "fd10:0:2::2"} {
			if out, err := box.run("ping -c1 -W2 " + inner); err == nil {
				t.Errorf("%s answered another pod: %s", inner, out)
			}
		}
	})
	t.Run("9.2.2-C2 the block decides address and gateway", func(t *testing.T) {
		block := cluster.Guest(t, ns, "block")
		block.Eventually(cluster, boot, "ip -6 -o addr show eth0 scope global", contains("inet6 fd20:0:3::2/120"))
		block.Run("ping -6 -c1 -W5 fd20:0:3::1")
		block.Run("ping -6 -c1 -W5 " + ipv6(box.ips))
	})
	t.Run("9.2.2-C3 a block with host bits is accepted", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "block")
		if got := vmi.Spec.Networks[0].Pod.VMIPv6NetworkCIDR; got != "fd20:0:3::7/120" {
			t.Errorf("the block became %q", got)
		}
	})
	t.Run("9.2.2-C5 a block too small for two addresses is an error", func(t *testing.T) {
		cluster.Eventually(t, boot, "the VM says that its block is too small", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "events", "-n", ns, "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(out, "VM CIDR subnet is too small, at least 2 host addresses are required") {
				err = fmt.Errorf("events: %s", out)
			}
			return err
		})
		vmi := &virtv1.VirtualMachineInstance{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "small"}, vmi); err == nil && vmi.Status.Phase == virtv1.Running {
			t.Error("the VM runs all the same")
		}
	})
	t.Run("9.2.2-C7 a guest without static addresses gets IPv6 by DHCPv6 and router advertisement", func(t *testing.T) {
		auto := cluster.Guest(t, ns, "auto")
		auto.Eventually(cluster, boot, "ip -6 -o addr show eth0 scope global", contains("inet6 fd10:0:2::2/"))
		auto.Run("ping -6 -c1 -W5 " + ipv6(box.ips))
	})
}
