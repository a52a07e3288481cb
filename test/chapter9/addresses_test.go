package chapter9

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// flatManifest is a layer 2 network without addresses of its own: whoever is on it brings them.
const flatManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.name}}}
spec:
  config: '{"cniVersion": "0.3.1", "name": "{{.namespace}}-{{.name}}", "type": "ovn-k8s-cni-overlay", "topology": "layer2",
    "netAttachDefName": "{{.namespace}}/{{.name}}"}'
`

// addressManifest is a VM whose second NIC is addressed through cloud-init.
const addressManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 5
      domain:
        memory: {guest: 128Mi}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: cloudinit, disk: {bus: virtio}}
          interfaces:
            - {name: default, masquerade: {}}
            - {name: second, bridge: {}}
      networks:
        - {name: default, pod: {}}
        - {name: second, multus: {networkName: {{.network}}}}
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
        - name: cloudinit
          cloudInitNoCloud:
            userData: "#cloud-config\n"
            networkData: |
              version: 2
              ethernets:
                eth0:
                  dhcp4: true
                eth1:
                  {{.eth1}}
`

// addressesOf waits until an interface shows an address that begins so, and returns its status.
func addressesOf(t *testing.T, namespace, name, iface, prefix string) virtv1.VirtualMachineInstanceNetworkInterface {
	t.Helper()
	var found virtv1.VirtualMachineInstanceNetworkInterface
	cluster.Eventually(t, boot, fmt.Sprintf("an address %s of %s's interface %s", prefix, name, iface), func() error {
		vmi := cluster.Running(t, namespace, name)
		for _, i := range vmi.Status.Interfaces {
			if i.Name == iface && strings.HasPrefix(i.IP, prefix) {
				found = i
				return nil
			}
		}
		return fmt.Errorf("interfaces %+v", vmi.Status.Interfaces)
	})
	return found
}

// 9.9: addresses that are set through cloud-init, and where they are seen.
func TestAddresses(t *testing.T) {
	ns := cluster.Namespace(t)
	cluster.Apply(t, ns, layer2Manifest, map[string]string{"name": "leased", "namespace": ns, "subnet": "10.10.20.0/24"})
	cluster.Apply(t, ns, flatManifest, map[string]string{"name": "flat", "namespace": ns})
	cluster.Apply(t, ns, addressManifest, map[string]string{"name": "app-02", "network": "leased", "eth1": "dhcp4: true"})
	cluster.Apply(t, ns, addressManifest, map[string]string{"name": "app-03", "network": "flat", "eth1": "addresses: [10.10.10.14/24]"})
	mute := map[string]string{"name": "mute", "network": "flat", "eth1": "addresses: [10.10.10.15/24]"}
	cluster.Apply(t, ns, addressManifest, mute)

	t.Run("9.9.1.1-C2 dhcp4 makes the interface dynamic", func(t *testing.T) {
		i := addressesOf(t, ns, "app-02", "second", "10.10.20.")
		cluster.Guest(t, ns, "app-02").Eventually(cluster, boot, "ip -4 -o addr show eth1", contains(i.IP+"/24"))
	})
	t.Run("9.9.1.1-C6 the overlay is the DHCP server", func(t *testing.T) {
		if vmi := cluster.Running(t, ns, "app-02"); len(vmi.Status.Interfaces[1].IPs) == 0 {
			t.Errorf("interfaces %+v", vmi.Status.Interfaces)
		}
	})
	t.Run("9.9.1-C2 a dynamic address is set on the command line", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "vm", "app-02", "-n", ns, "-o", "jsonpath={.spec.template.spec.volumes[1].cloudInitNoCloud.networkData}")
		if err != nil || !strings.Contains(out, "eth1:\n    dhcp4: true") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("9.9.1.1-C5 the VM is connected to a secondary network", func(t *testing.T) {
		for name, network := range map[string]string{"app-02": "leased", "app-03": "flat"} {
			vmi := cluster.Running(t, ns, name)
			status := cluster.LauncherPod(t, vmi).Annotations["k8s.v1.cni.cncf.io/network-status"]
			if i := vmi.Status.Interfaces[1]; !strings.Contains(i.InfoSource, "multus-status") || !strings.Contains(status, `"`+ns+"/"+network+`"`) {
				t.Errorf("%s: interface %+v, network status %s", name, i, status)
			}
		}
	})
	guest := cluster.Guest(t, ns, "app-03")
	t.Run("9.9.1.1-C3 addresses in CIDR form make it static", func(t *testing.T) {
		guest.Eventually(cluster, boot, "ip -4 -o addr show eth1", contains("inet 10.10.10.14/24"))
	})
	t.Run("9.9.1-C3 cloud-init carried it", func(t *testing.T) {
		data := cluster.Running(t, ns, "app-03").Spec.Volumes[1].CloudInitNoCloud.NetworkData
		if !strings.Contains(data, "version: 2") || !strings.Contains(data, "addresses: [10.10.10.14/24]") {
			t.Errorf("network data %q", data)
		}
	})
	t.Run("9.9.1.1-C1 networkData is a document of version 2", func(t *testing.T) {
		var document struct {
			Version   int
			Ethernets map[string]struct{ Addresses []string }
		}
		text := readVM(t, ns, "app-03").Spec.Template.Spec.Volumes[1].CloudInitNoCloud.NetworkData
		if err := yaml.Unmarshal([]byte(text), &document); err != nil || document.Version != 2 || !slices.Equal(document.Ethernets["eth1"].Addresses, []string{"10.10.10.14/24"}) {
			t.Errorf("%+v, %v", document, err)
		}
	})
	t.Run("9.9.1-C1 a static address is set when the VM is made", func(t *testing.T) {
		if vm := readVM(t, ns, "app-03"); vm.Status.ObservedGeneration != 1 || vm.Generation != 1 {
			t.Errorf("the VM was changed %d times", vm.Generation-1)
		}
		if i := addressesOf(t, ns, "app-03", "second", "10.10.10.14"); i.Name != "second" {
			t.Errorf("interface %+v", i)
		}
	})
	t.Run("9.9.1.1-C4 the pod interface is the default route", func(t *testing.T) {
		if out := guest.Run("ip -4 route show default"); !strings.Contains(out, "dev eth0") || strings.Contains(out, "eth1") {
			t.Errorf("default route %q", out)
		}
	})
	t.Run("9.9.2.2-K1 describe prints the interfaces", func(t *testing.T) {
		addressesOf(t, ns, "app-03", "second", "10.10.10.14")
		out, err := cluster.Kubectl(t.Context(), "describe", "vmi", "app-03", "-n", ns)
		if err != nil {
			t.Fatal(err)
		}
		block := regexp.MustCompile(`(?s)\n  Interfaces:\n.*?Interface Name: +eth0\n.*?Interface Name: +eth1\n.*?Ip Address: +10\.10\.10\.14\n.*?Ip Addresses:\n +10\.10\.10\.14\n.*?Mac: +[0-9a-f:]{17}\n.*?Name: +second\n`)
		if !block.MatchString(out) {
			t.Errorf("it prints\n%s", out)
		}
	})
	t.Run("9.9.2.1-C1 the guest agent shows the secondary interface's address", func(t *testing.T) {
		if i := cluster.Running(t, ns, "app-03").Status.Interfaces[1]; i.InfoSource != "domain, guest-agent, multus-status" || !slices.Equal(i.IPs[:1], []string{"10.10.10.14"}) {
			t.Errorf("interface %+v", i)
		}
	})
	t.Run("9.9.2.2-C1 keys of an entry", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "vmi", "app-03", "-n", ns, "-o", "jsonpath={.status.interfaces}")
		var list []map[string]any
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		if err != nil || len(list) < 2 {
			t.Fatalf("%v: %s", err, out)
		}
		for _, entry := range list {
			for _, key := range []string{"interfaceName", "ipAddress", "ipAddresses", "mac", "name"} {
				if entry[key] == nil {
					t.Errorf("%s is missing: %v", key, entry)
				}
			}
		}
	})
	t.Run("9.9.2.2-K2 the YAML and the guest show the same", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "vmi", "app-03", "-n", ns, "-o", "yaml")
		if err != nil || !strings.Contains(out, "ipAddress: 10.10.10.14\n") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("9.9.2.2-C2 the address is the first of several", func(t *testing.T) {
		guest.Run("ip addr add 10.10.10.114/24 dev eth1; ip -6 addr add fd00:10::14/64 dev eth1 nodad")
		cluster.Eventually(t, boot, "all addresses", func() error {
			i := cluster.Running(t, ns, "app-03").Status.Interfaces[1]
			text := strings.Join(i.IPs, " ")
			if i.IP != i.IPs[0] || !strings.Contains(text, "10.10.10.114") || !strings.Contains(text, "fd00:10::14") || !strings.Contains(text, "fe80::") {
				return fmt.Errorf("addresses %q", i.IPs)
			}
			return nil
		})
	})
	t.Run("9.9.2.2-C5 addresses carry no prefix length", func(t *testing.T) {
		for _, i := range cluster.Running(t, ns, "app-03").Status.Interfaces {
			if strings.Contains(strings.Join(i.IPs, " "), "/") {
				t.Errorf("addresses %q", i.IPs)
			}
		}
	})
	t.Run("9.9.2.2-C3 interfaces that are not in the spec are listed without a name", func(t *testing.T) {
		if out, err := guest.Try("modprobe dummy; ip link add inner0 type dummy && ip addr add 192.0.2.1/24 dev inner0 && ip link set inner0 up"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		cluster.Eventually(t, boot, "the guest's own interface", func() error {
			for _, i := range cluster.Running(t, ns, "app-03").Status.Interfaces {
				if i.InterfaceName == "inner0" && i.MAC != "" && i.Name == "" && i.InfoSource == "guest-agent" && i.IP == "192.0.2.1" {
					return nil
				}
			}
			return fmt.Errorf("interfaces %+v", cluster.Running(t, ns, "app-03").Status.Interfaces)
		})
	})
	silent := cluster.Guest(t, ns, "mute")
	silent.Run("mv /usr/sbin/qemu-ga /usr/sbin/qemu-ga.off; killall qemu-ga")
	t.Run("9.9.2.1-C2 the pod interface shows its IP without a guest agent", func(t *testing.T) {
		cluster.Eventually(t, boot, "no agent, an address", func() error {
			vmi := cluster.Running(t, ns, "mute")
			for _, c := range vmi.Status.Conditions {
				if c.Type == virtv1.VirtualMachineInstanceAgentConnected {
					return fmt.Errorf("the agent is connected")
				}
			}
			if vmi.Status.Interfaces[0].IP == "" {
				return fmt.Errorf("interfaces %+v", vmi.Status.Interfaces)
			}
			return nil
		})
	})
	t.Run("9.9.2.2-C4 describing shows it too", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "mute")
		out, err := cluster.Kubectl(t.Context(), "describe", "vmi", "mute", "-n", ns)
		if first := vmi.Status.Interfaces[0]; err != nil || strings.Contains(first.InfoSource, "guest-agent") || !regexp.MustCompile(`Ip Address: +`+regexp.QuoteMeta(first.IP)+"\n").MatchString(out) {
			t.Errorf("%v, %+v\n%s", err, first, out)
		}
	})
	t.Run("a secondary interface shows the address that the guest is heard to use", func(t *testing.T) {
		silent.Try("ping -c1 -W1 10.10.10.1")
		i := addressesOf(t, ns, "mute", "second", "10.10.10.15")
		if !strings.Contains(i.InfoSource, "observed") {
			t.Errorf("info source %q", i.InfoSource)
		}
	})
	t.Run("sources that contradict each other are shown", func(t *testing.T) { checkDisagreement(t, ns) })
}

// checkDisagreement has the guest of app-02 use another address than its network gave.
func checkDisagreement(t *testing.T, ns string) {
	const own = "10.10.20.99"
	given := cluster.Running(t, ns, "app-02").Status.Interfaces[1].IP
	guest := cluster.Guest(t, ns, "app-02")
	guest.Run("killall udhcpc 2>/dev/null; ip -4 addr flush dev eth1; ip addr add " + own + "/24 dev eth1; ping -c1 -W1 10.10.20.1; true")
	condition := func() (string, error) {
		return cluster.Kubectl(t.Context(), "get", "vmi", "app-02", "-n", ns, "-o", `jsonpath={.status.conditions[?(@.type=="AddressesDisagree")].message}`)
	}
	want := "interface second: the network gave " + given + ", the guest agent says " + own + ", heard on the network " + own
	cluster.Eventually(t, boot, "the condition", func() error {
		out, err := condition()
		if err == nil && !strings.HasPrefix(out, want) {
			err = fmt.Errorf("it says %q, want %q", out, want)
		}
		return err
	})
	out, err := cluster.Kubectl(t.Context(), "get", "events", "-n", ns, "--field-selector", "reason=AddressSourcesDisagree")
	if err != nil || !strings.Contains(out, "interface second: the network gave "+given) {
		t.Errorf("%v, events %s", err, out)
	}
	out, err = patchbayVM(t, ns, "ip", "app-02")
	table := regexp.MustCompile(`The sources of second's addresses disagree:\n  the network gave +` + given + `\n  the guest agent says +` + own + `.*\n  heard on the network +` + own)
	if err != nil || !table.MatchString(out) {
		t.Errorf("%v\n%s", err, out)
	}
	said := addressesByCommand(t, ns, "app-02")[1].Said
	if said == nil || !said.Disagree || !slices.Contains(said.Network, given) || !slices.Contains(said.GuestAgent, own) || !slices.Contains(said.Observed, own) {
		t.Errorf("as JSON %+v", said)
	}
	guest.Run("ip addr add " + given + "/24 dev eth1; ping -c1 -W1 -I " + given + " 10.10.20.1; true")
	cluster.Eventually(t, boot, "the end of the condition", func() error {
		out, err := condition()
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
}
