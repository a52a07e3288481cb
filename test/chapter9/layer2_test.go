package chapter9

import (
	"fmt"
	"net"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	nadutils "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/utils"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// nadManifest is the attachment definition of 9.5.1.1. The name of the network is not that of the definition.
const nadManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.nad}}}
spec:
  config: |-
    {
      "cniVersion": "0.3.1",
      "name": "{{.network}}",
      "type": "ovn-k8s-cni-overlay",
      "topology": "layer2",
      {{.more}}
      "netAttachDefName": "{{.namespace}}/{{.nad}}"
    }
`

func overlay(t *testing.T, namespace, nad, network, more string) string {
	t.Helper()
	if more != "" {
		more += ","
	}
	return cluster.Apply(t, namespace, nadManifest, map[string]string{"namespace": namespace, "nad": nad, "network": network, "more": more})
}

// otherManifest is an attachment definition of any other plugin.
const otherManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.nad}}}
spec:
  config: '{{.config}}'
`

// attachedManifest is the VM of 9.5.2.1: secondary networks only, unless the pod network is among the lines.
const attachedManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    metadata:
      labels: {app: {{.name}}}
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      domain:
        memory: {guest: 128Mi}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: seed, disk: {bus: virtio}}
          interfaces: {{.interfaces}}
      networks: {{.networks}}
      volumes:
        - name: root
          containerDisk: {image: "patchbay.io/guest/tiny:latest"}
        - name: seed
          cloudInitNoCloud:
            userData: "#cloud-config\n"
            networkData: |
{{.networkData}}
`

// attached is a VM of attachedManifest.
type attached struct {
	name, node string
	nics       []string // "NIC=NAD"; "NIC=" is the pod network
	data       string   // network data; empty: nothing is configured
}

func (a attached) apply(t *testing.T, namespace string) string {
	t.Helper()
	return cluster.Apply(t, namespace, attachedManifest, a.values())
}

func (a attached) values() map[string]string {
	var interfaces, networks []string
	for _, nic := range a.nics {
		name, nad, _ := strings.Cut(nic, "=")
		if nad == "" {
			interfaces = append(interfaces, fmt.Sprintf("{name: %s, masquerade: {}}", name))
			networks = append(networks, fmt.Sprintf("{name: %s, pod: {}}", name))
			continue
		}
		interfaces = append(interfaces, fmt.Sprintf("{name: %s, bridge: {}}", name))
		networks = append(networks, fmt.Sprintf("{name: %s, multus: {networkName: %s}}", name, nad))
	}
	data := a.data
	if data == "" {
		data = "version: 2\n"
	}
	return map[string]string{
		"name": a.name, "node": a.node, "interfaces": "[" + strings.Join(interfaces, ", ") + "]", "networks": "[" + strings.Join(networks, ", ") + "]",
		"networkData": "              " + strings.ReplaceAll(strings.TrimSpace(data), "\n", "\n              "),
	}
}

// applyInstance makes the instance alone, without a VirtualMachine.
func (a attached) applyInstance(t *testing.T, namespace string) {
	t.Helper()
	head, spec, _ := strings.Cut(attachedManifest, "    spec:\n")
	head = strings.Replace(head[:strings.Index(head, "spec:")], "kind: VirtualMachine", "kind: VirtualMachineInstance", 1)
	cluster.Apply(t, namespace, head+"spec:\n"+strings.ReplaceAll("\n"+spec, "\n    ", "\n")[1:], a.values())
}

func static(device, address string) string {
	return fmt.Sprintf("version: 2\nethernets:\n  %s:\n    addresses: [%s]\n", device, address)
}

const selectingManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: {{.name}}
  labels: {app: {{.name}}}
  annotations:
    k8s.v1.cni.cncf.io/networks: '{{.networks}}'
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: {{.node}}}
  containers:
    - name: toolbox
      image: patchbay.io/guest/toolbox:latest
      imagePullPolicy: IfNotPresent
      command: [sleep, "86400"]
      securityContext: {capabilities: {add: [NET_ADMIN]}}
`

// podOn makes a pod that asks for networks.
func podOn(t *testing.T, namespace, name, node, networks string) toolbox {
	t.Helper()
	cluster.Apply(t, namespace, selectingManifest, map[string]string{"name": name, "node": node, "networks": networks})
	cluster.PodReady(t, namespace, name)
	return toolbox{t: t, namespace: namespace, name: name}
}

func (b toolbox) must(command string) string {
	b.t.Helper()
	out, err := b.run(command)
	if err != nil {
		b.t.Fatalf("pod %s: %s: %v %s", b.name, command, err, out)
	}
	return out
}

func (b toolbox) pings(ip string) error {
	out, err := b.run("ping -n -c2 -W2 " + ip)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// 9.5: a layer 2 network of the overlay, without addresses of its own.
func TestLayer2(t *testing.T) {
	ns, other := cluster.Namespace(t), cluster.Namespace(t)
	shared := ns + "-blue-l2" // network names are the cluster's
	created := overlay(t, ns, "blue-l2", shared, `"mtu": 1400`)
	overlay(t, other, "also-blue", shared, `"mtu": 1400`)
	overlay(t, ns, "plain", ns+"-plain", "")
	vm := attached{name: "app-01", node: "node-1", nics: []string{"secondary=blue-l2"}, data: static("eth0", "192.168.100.1/24")}.apply(t, ns)
	attached{name: "app-02", node: "node-2", nics: []string{"secondary=also-blue"}, data: static("eth0", "192.168.100.2/24")}.apply(t, other)
	first, second := cluster.Guest(t, ns, "app-01"), cluster.Guest(t, other, "app-02")

	t.Run("9.5.1.1-K1 create prints the object", func(t *testing.T) {
		if want := "networkattachmentdefinition.k8s.cni.cncf.io/blue-l2 created"; strings.TrimSpace(created) != want {
			t.Errorf("printed %q, want %q", created, want)
		}
	})
	t.Run("9.5.2.1-K1 create prints the object", func(t *testing.T) {
		if want := "virtualmachine.kubevirt.io/app-01 created"; strings.TrimSpace(vm) != want {
			t.Errorf("printed %q, want %q", vm, want)
		}
	})
	t.Run("9.5-C1 VMs on different nodes connect", func(t *testing.T) {
		first.Eventually(cluster, boot, "ping -c2 -W3 192.168.100.2", contains(" 0% packet loss"))
		second.Eventually(cluster, soon, "ping -c2 -W3 192.168.100.1", contains(" 0% packet loss"))
	})
	t.Run("9.1.4-C3 over Geneve between the nodes", func(t *testing.T) { seesGeneve(t, first, "192.168.100.2") })
	t.Run("9.1.4-C6 cloud-init sets a secondary interface's address", func(t *testing.T) {
		first.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 192.168.100.1/24"))
	})
	t.Run("9.1.4-C7 the guest agent tells the address", func(t *testing.T) {
		cluster.Eventually(t, boot, "the address in the list of instances", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "vmi", "app-01", "-n", ns, "-o", "jsonpath={.status.interfaces[0].ipAddress} {.status.interfaces[0].infoSource}")
			if err == nil && (!strings.HasPrefix(out, "192.168.100.1 ") || !strings.Contains(out, "guest-agent")) {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	})
	t.Run("9.5.1.1-C2 definitions of one network name join VMs of two namespaces", func(t *testing.T) {
		second.Eventually(cluster, boot, "ping -c2 -W3 192.168.100.1", contains(" 0% packet loss"))
	})
	t.Run("9.5.2.1-C1 the binding is bridge, and the interface has the network's name", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "app-01")
		i := vmi.Spec.Domain.Devices.Interfaces
		if len(i) != 1 || i[0].Bridge == nil || i[0].Name != vmi.Spec.Networks[0].Name {
			t.Errorf("interfaces %+v, networks %+v", i, vmi.Spec.Networks)
		}
		if s := vmi.Status.Interfaces; len(s) != 1 || s[0].Name != "secondary" || !strings.HasPrefix(s[0].PodInterfaceName, "pod") {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("9.5.2.1-C4 the node selector decides where it runs", func(t *testing.T) {
		if node := cluster.Running(t, other, "app-02").Status.NodeName; node != "node-2" {
			t.Errorf("it runs on %s", node)
		}
	})
	t.Run("9.5.1.1-C5 the MTU is the definition's", func(t *testing.T) {
		first.Eventually(cluster, soon, "cat /sys/class/net/eth0/mtu", equals("1400"))
	})
	attached{name: "plain", node: "node-2", nics: []string{"plain=plain", "shared=" + other + "/also-blue"}, data: static("eth1", "192.168.100.3/24")}.applyInstance(t, ns)
	peer := podOn(t, ns, "peer", "node-1", "blue-l2,plain")
	t.Run("9.5.1.1-C6 without an MTU it is the underlay's less the overlay's", func(t *testing.T) {
		guest := cluster.Guest(t, ns, "plain")
		want := cluster.LauncherPod(t, cluster.Running(t, ns, "plain"))
		eth0 := statusOf(t, want)[0]
		if eth0.Mtu >= 9100 {
			t.Errorf("the pod network's MTU is %d", eth0.Mtu)
		}
		guest.Eventually(cluster, soon, "cat /sys/class/net/eth0/mtu", equals(fmt.Sprint(eth0.Mtu)))
	})
	t.Run("9.5.1.1-C8 without a subnet no address is assigned", func(t *testing.T) {
		guest := cluster.Guest(t, ns, "plain")
		guest.Run("ip link set eth0 up")
		if out, _ := guest.Try("busybox udhcpc -i eth0 -n -q -t 3 -T 1"); strings.Contains(out, "obtained") {
			t.Errorf("somebody gave an address: %s", out)
		}
		if ips := cluster.Running(t, ns, "plain").Status.Interfaces[0].IPs; len(pick4(ips)) > 0 {
			t.Errorf("status has %v", ips)
		}
	})
	t.Run("9.5.2.1-C7 a definition of another namespace", func(t *testing.T) {
		first.Eventually(cluster, boot, "ping -c2 -W3 192.168.100.3", contains(" 0% packet loss"))
	})
	t.Run("9.1.1-C3 definitions attach pods, VMs and instances to several networks", func(t *testing.T) {
		for _, address := range []string{"192.168.100.4/24 dev net1", "192.168.101.4/24 dev net2"} {
			peer.must("ip addr add " + address)
		}
		guest := cluster.Guest(t, ns, "plain")
		guest.Run("ip addr add 192.168.101.3/24 dev eth0")
		for _, ip := range []string{"192.168.100.1", "192.168.100.2", "192.168.100.3", "192.168.101.3"} {
			cluster.Eventually(t, soon, "the pod reaches "+ip, func() error { return peer.pings(ip) })
		}
	})
	t.Run("9.5.2.1-C8 ports have no effect on a bridge interface", func(t *testing.T) {
		second.Eventually(cluster, boot, "timeout 5 nc 192.168.100.1 22 </dev/null | head -c 4", contains("SSH-"))
	})
	testMultiPolicy(t, ns, second, peer)
	t.Run("9.5.2.1-C5 an edited VM that runs needs a restart", func(t *testing.T) {
		const mac, edit = "02:00:00:00:95:05", `[{"op":"add","path":"/spec/template/spec/domain/devices/interfaces/0/macAddress","value":"02:00:00:00:95:05"}]`
		if out, err := cluster.Kubectl(t.Context(), "patch", "vm", "app-01", "-n", ns, "--type=json", "-p", edit); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		awaitVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
		if now := first.Run("cat /sys/class/net/eth0/address"); now == mac {
			t.Error("the NIC changed while the VM ran")
		}
		if out, err := cluster.NewClient(t).Run(t.Context(), "", "virtctl", "restart", "app-01", "-n", ns); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		awaitNoVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
		cluster.Eventually(t, boot, "the VM with its new MAC address", func() error {
			if err := peer.pings("192.168.100.1"); err != nil {
				return err
			}
			if out := peer.must("ip neigh show 192.168.100.1"); !strings.Contains(out, mac) {
				return fmt.Errorf("the neighbour is %s", out)
			}
			return nil
		})
	})
}

func pick4(ips []string) (out []string) {
	for _, ip := range ips {
		if !strings.Contains(ip, ":") {
			out = append(out, ip)
		}
	}
	return out
}

// statusOf reads a pod's network-status.
func statusOf(t *testing.T, pod *corev1.Pod) []nadv1.NetworkStatus {
	t.Helper()
	list, err := nadutils.GetNetworkStatus(pod)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// 9.5.1.1-C9: addresses come from a static setting, or from a DHCP server on the network.
func TestLayer2Addresses(t *testing.T) {
	ns := cluster.Namespace(t)
	overlay(t, ns, "lan", ns+"-lan", "")
	overlay(t, ns, "addressed", ns+"-addressed", `"subnets": "10.100.200.0/24", "excludeSubnets": "10.100.200.0/29"`)
	server := podOn(t, ns, "dhcp", "node-2", "lan@net1")
	server.must("ip addr add 192.168.50.1/24 dev net1")
	server.must("mkdir -p /tmp/d && cd /tmp/d && touch leases && printf 'start 192.168.50.20\nend 192.168.50.40\ninterface net1\nlease_file /tmp/d/leases\npidfile /tmp/d/pid\n" +
		"option subnet 255.255.255.0\n' > conf && (busybox udhcpd -f conf >log 2>&1 &)")
	dhcp := "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n"
	attached{name: "dhcp", node: "node-1", nics: []string{"lan=lan"}, data: dhcp}.apply(t, ns)
	peer := podOn(t, ns, "peer", "node-2", "addressed")

	t.Run("9.5.1.1-C9 by DHCP, from a server in a pod on another node", func(t *testing.T) {
		guest := cluster.Guest(t, ns, "dhcp")
		guest.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 192.168.50."))
		guest.Eventually(cluster, soon, "ping -c2 -W3 192.168.50.1", contains(" 0% packet loss"))
	})
	attached{name: "three", node: "node-1", nics: []string{"default=", "lan=lan", "addressed=addressed"},
		data: "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n  eth1:\n    addresses: [192.168.50.2/24]\n  eth2:\n    dhcp4: true\n"}.apply(t, ns)
	three := cluster.Guest(t, ns, "three")
	t.Run("9.5.1.1-C9 by a static setting", func(t *testing.T) {
		three.Eventually(cluster, boot, "ip -4 -o addr show eth1", contains("192.168.50.2/24"))
		if err := server.pings("192.168.50.2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("9.1-C4 the pod network and further networks", func(t *testing.T) {
		three.Eventually(cluster, boot, "ping -c1 -W3 "+node2IP(t), contains(" 0% packet loss"))
		three.Eventually(cluster, boot, "ping -c1 -W3 192.168.50.1", contains(" 0% packet loss"))
	})
	t.Run("9.5.2.1-C2 several NICs, each on its network", func(t *testing.T) {
		three.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("10.0.2.2/24"))
		vmi := cluster.Running(t, ns, "three")
		byName := map[string]virtv1.VirtualMachineInstanceNetworkInterface{}
		for _, i := range vmi.Status.Interfaces {
			byName[i.Name] = i
		}
		if len(byName) != 3 {
			t.Fatalf("status %+v", vmi.Status.Interfaces)
		}
		given := byName["addressed"].IP
		if !strings.HasPrefix(given, "10.100.200.") || net.ParseIP(given).To4()[3] < 8 {
			t.Errorf("the network gave %q", given)
		}
		three.Eventually(cluster, boot, "ip -4 -o addr show eth2", contains(given+"/24"))
		if err := peer.pings(given); err != nil {
			t.Error(err)
		}
	})
	testSelectingMultiPolicy(t, ns, peer, "three")
}

// 9.5.2.1-C3: networks of other plugins, for VMs and for pods.
func TestOtherPlugins(t *testing.T) {
	ns := cluster.Namespace(t)
	bridge := "br" + ns[len(ns)-5:]
	cluster.Apply(t, ns, otherManifest, map[string]string{"nad": "lan", "config": fmt.Sprintf(`{"cniVersion": "0.3.1", "name": "lan", "type": "bridge", "bridge": "%s",
      "ipam": {"type": "host-local", "subnet": "10.77.0.0/24"}}`, bridge)})
	attached{name: "bridged", node: "node-1", nics: []string{"lan=lan"}, data: "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n"}.apply(t, ns)
	peer := podOn(t, ns, "peer", "node-1", `[{"name":"lan","interface":"data0","mac":"02:00:00:00:aa:01"}]`)

	t.Run("9.5.2.1-C3 a pod and a VM on a bridge of the node", func(t *testing.T) {
		guest := cluster.Guest(t, ns, "bridged")
		given := cluster.Running(t, ns, "bridged").Status.Interfaces[0].IP
		guest.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet "+given+"/24"))
		if err := peer.pings(given); err != nil {
			t.Error(err)
		}
		if out := peer.must("cat /sys/class/net/data0/address"); out != "02:00:00:00:aa:01" {
			t.Errorf("the pod's MAC address is %s", out)
		}
	})
	t.Run("9.1-C6 definitions have a plugin make the interface", func(t *testing.T) {
		if ports := inNode(t, "node-1", "ip", "-o", "link", "show", "master", bridge); strings.Count(ports, "\n") != 1 {
			t.Errorf("want a port for the VM and one for the pod on the bridge of the plugin: %s", ports)
		}
		status := statusOf(t, cluster.PodReady(t, ns, "peer"))
		if last := status[len(status)-1]; last.Name != ns+"/lan" || last.Interface != "data0" || len(last.IPs) != 1 || !strings.HasPrefix(last.IPs[0], "10.77.0.") {
			t.Errorf("network-status %+v", status)
		}
	})
	t.Run("9.5.2.1-C3 a definition that does not exist is named", func(t *testing.T) {
		cluster.Apply(t, ns, selectingManifest, map[string]string{"name": "lost", "node": "node-2", "networks": "nowhere"})
		cluster.Eventually(t, soon, "an event names the definition", func() error {
			var events corev1.EventList
			if err := cluster.Client.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
				return err
			}
			for _, e := range events.Items {
				if e.InvolvedObject.Name == "lost" && e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "nowhere") {
					return nil
				}
			}
			return fmt.Errorf("%d events, none about it", len(events.Items))
		})
	})
	t.Run("9.5.2.1-C3 an attachment is added to and removed from a running pod", func(t *testing.T) {
		annotate := func(value string) {
			if out, err := cluster.Kubectl(t.Context(), "annotate", "--overwrite", "pod", "peer", "-n", ns, "k8s.v1.cni.cncf.io/networks="+value); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		}
		kept := `{"name":"lan","interface":"data0","mac":"02:00:00:00:aa:01"}`
		overlay(t, ns, "later", ns+"-later", `"subnets": "10.78.0.0/24"`)
		annotate(`[` + kept + `,{"name":"later","interface":"later0"}]`)
		cluster.Eventually(t, soon, "later0 is there", func() error { _, err := peer.run("ip -4 -o addr show later0 | grep 10.78.0."); return err })
		annotate(`[` + kept + `]`)
		cluster.Eventually(t, soon, "later0 is gone", func() error {
			if out, err := peer.run("ip link show later0"); err == nil {
				return fmt.Errorf("still there: %s", out)
			}
			return nil
		})
	})
}
