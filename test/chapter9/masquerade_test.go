package chapter9

import (
	"fmt"
	"strings"
	"testing"
)

// 9.2.1: the masquerade binding on the default pod network.
func TestMasquerade(t *testing.T) {
	ns := cluster.Namespace(t)
	created := machine{name: "open"}.apply(t, ns)
	machine{name: "listed", iface: "ports: [{name: http, port: 80}]"}.apply(t, ns)
	machine{name: "custom", network: `vmNetworkCIDR: 10.11.12.0/24`}.apply(t, ns)
	box := pod(t, ns, "client", "node-2")
	open := cluster.Guest(t, ns, "open")
	openIPs := cluster.Running(t, ns, "open").Status.Interfaces[0].IPs
	listedIPs := cluster.Running(t, ns, "listed").Status.Interfaces[0].IPs

	t.Run("9.2.1-K1 create prints the object", func(t *testing.T) {
		if want := "virtualmachine.kubevirt.io/open created"; strings.TrimSpace(created) != want {
			t.Errorf("printed %q, want %q", created, want)
		}
	})
	t.Run("9.2.1-C1 the guest gets its address by DHCP", func(t *testing.T) {
		open.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 10.0.2.2/24"))
		if route := open.Run("ip -4 route show default"); !strings.Contains(route, "via 10.0.2.1") {
			t.Errorf("default route %q, want one via 10.0.2.1", route)
		}
		if resolv := open.Run("cat /etc/resolv.conf"); !strings.Contains(resolv, "10.96.0.10") || !strings.Contains(resolv, "svc.cluster.local") {
			t.Errorf("resolv.conf %q lacks the cluster's DNS", resolv)
		}
		if name := open.Run("hostname"); name != "open" {
			t.Errorf("hostname %q, want the VM's name", name)
		}
	})
	t.Run("9.2.1-C3 without a list every port is open", func(t *testing.T) {
		waitForWeb(t, box, ipv4(openIPs))
		for _, ip := range openIPs {
			for _, port := range []int{7, 22, 80} {
				box.expect(ip, port, answered)
			}
		}
	})
	t.Run("9.2.1-C4 with a list only its ports are open", func(t *testing.T) {
		waitForWeb(t, box, ipv4(listedIPs))
		box.expect(ipv4(listedIPs), 80, answered)
		for _, port := range []int{7, 22} {
			box.expect(ipv4(listedIPs), port, refused)
		}
	})
	t.Run("9.2.1-C2 the VM's traffic carries the pod IP", func(t *testing.T) {
		for _, pair := range [][2]string{{ipv4(listedIPs), ipv4(openIPs)}, {ipv6(listedIPs), ipv6(openIPs)}} {
			seen := open.Run(fmt.Sprintf("curl -sfm5 http://%s/client", bracket(pair[0])))
			if seen != pair[1] {
				t.Errorf("the server saw %q, want the pod IP %s", seen, pair[1])
			}
		}
	})
	t.Run("9.2.1-C6 ports 49152 and 49153 are dropped", func(t *testing.T) {
		open.Run("for p in 49151 49152 49153; do (nc -ll -p $p -e cat >/dev/null 2>&1 &); done")
		for _, ip := range openIPs {
			box.becomes(ip, 49151, answered) // when its program listens
			box.expect(ip, 49152, silent)
			box.expect(ip, 49153, silent)
		}
	})
	testPolicy(t, ns, box, open, openIPs)
	t.Run("9.2.1-C11 the guest network can be chosen", func(t *testing.T) {
		custom := cluster.Guest(t, ns, "custom")
		custom.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 10.11.12.2/24"))
		if route := custom.Run("ip -4 route show default"); !strings.Contains(route, "via 10.11.12.1") {
			t.Errorf("default route %q, want one via 10.11.12.1", route)
		}
	})
	t.Run("9.2.1-C12 the VMI reports the pod IP", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "open")
		pod := cluster.LauncherPod(t, vmi)
		if got := vmi.Status.Interfaces[0].IP; got != pod.Status.PodIP || got == "" {
			t.Errorf("the VMI reports %q, the pod has %q", got, pod.Status.PodIP)
		}
	})
	t.Run("9.2-C1 the VM is on the pod network with masquerade", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "open")
		if vmi.Spec.Domain.Devices.Interfaces[0].Masquerade == nil || vmi.Spec.Networks[0].Pod == nil {
			t.Errorf("interfaces %+v, networks %+v", vmi.Spec.Domain.Devices.Interfaces, vmi.Spec.Networks)
		}
	})
}

// 9.2.1: what admission refuses. Nothing of a refused manifest may exist afterwards.
func TestMasqueradeAdmission(t *testing.T) {
	ns := cluster.Namespace(t)
	cases := []struct{ name, iface, network, want string }{
		{"9.2.1-C5 port 0", "ports: [{port: 0}]", "", "Port field is mandatory."},
		{"9.2.1-C5 port 65536", "ports: [{port: 65536}]", "", "Port field must be in range 0 < x < 65536."},
		{"9.2.1-C9 port name twice", "ports: [{name: a, port: 1}, {name: a, port: 2}]", "", "Duplicate name of the port: a"},
		{"9.2.1-C9 bad port name", "ports: [{name: Bad_Name, port: 1}]", "", "Invalid name of the port: Bad_Name"},
		{"9.2.1-C9 protocol", "ports: [{port: 1, protocol: SCTP}]", "", "Unknown protocol, only TCP or UDP allowed"},
		{"9.2.1-C10 model", "model: ne3000", "", "uses model ne3000 that is not supported."},
		{"9.2.1-C10 MAC", "macAddress: 'de:ad'", "", "invalid MAC address format for interface"},
		{"9.2.1-C10 long MAC", "macAddress: '02:00:00:00:00:00:00:01'", "", "has too long MAC address"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := machine{name: "refused", iface: c.iface, network: c.network}
			refusedWith(t, ns, vmManifest, m.values(), c.want)
			if out, err := cluster.Kubectl(t.Context(), "get", "vm,vmi,pod", "-n", ns, "-o", "name"); err != nil || out != "" {
				t.Errorf("left behind %q, %v", out, err)
			}
		})
	}
	t.Run("9.2.1-C5 ports 1 and 65535 are accepted", func(t *testing.T) {
		m := machine{name: "accepted", iface: "ports: [{port: 1}, {port: 65535}]"}.values()
		cluster.Apply(t, ns, strings.Replace(vmManifest, "runStrategy: Always", "runStrategy: Halted", 1), m)
	})
	pairs := []struct{ name, interfaces, networks, want string }{
		{"9.2.1-C7 masquerade on another network", "[{name: a, masquerade: {}}]", "[{name: a, multus: {networkName: x}}]",
			"Masquerade interface only implemented with pod network"},
		{"9.2.1-C8 network without interface", "[{name: a, masquerade: {}}]", "[{name: a, pod: {}}, {name: b, multus: {networkName: x}}]", "'b' not found."},
		{"9.2.1-C8 interface without network", "[{name: a, masquerade: {}}, {name: b, bridge: {}}]", "[{name: a, pod: {}}]", "'b' not found."},
		{"9.2.1-C8 same name twice", "[{name: a, masquerade: {}}]", "[{name: a, pod: {}}, {name: a, multus: {networkName: x}}]", "every network must have a unique name"},
		{"9.2.1-C8 two pod networks", "[{name: a, masquerade: {}}, {name: b, masquerade: {}}]", "[{name: a, pod: {}}, {name: b, pod: {}}]",
			"more than one interface is connected to a pod network"},
		{"9.2.1-C8 no source", "[{name: a, masquerade: {}}]", "[{name: a}]", "should have a network type"},
		{"9.2.1-C8 two sources", "[{name: a, masquerade: {}}]", "[{name: a, pod: {}, multus: {networkName: x}}]", "should have only one network type"},
		{"9.2.1-C10 interface name", "[{name: a b, masquerade: {}}]", "[{name: a b, pod: {}}]", "Network interface name can only contain"},
	}
	for _, c := range pairs {
		t.Run(c.name, func(t *testing.T) {
			refusedWith(t, ns, pairManifest, map[string]string{"interfaces": c.interfaces, "networks": c.networks}, c.want)
		})
	}
}

const pairManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: refused}
spec:
  runStrategy: Halted
  template:
    spec:
      domain:
        memory: {guest: 128Mi}
        devices:
          interfaces: {{.interfaces}}
      networks: {{.networks}}
`

func contains(part string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, part) }
}

func equals(want string) func(string) bool {
	return func(s string) bool { return s == want }
}

func bracket(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// waitForWeb waits until a guest's web server answers, so that what follows does not measure its boot.
func waitForWeb(t *testing.T, box toolbox, ip string) {
	t.Helper()
	cluster.Eventually(t, boot, "the web server at "+ip, func() error {
		if got := box.connect(ip, 80); got != answered {
			return fmt.Errorf("port 80: %s", got)
		}
		return nil
	})
}
