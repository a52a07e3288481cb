package chapter9

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const layer2Manifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.name}}}
spec:
  config: '{"cniVersion": "0.3.1", "name": "{{.namespace}}-{{.name}}", "type": "ovn-k8s-cni-overlay", "topology": "layer2",
    "subnets": "{{.subnet}}", "netAttachDefName": "{{.namespace}}/{{.name}}"}'
`

// plugManifest is the published example with its template in the right place.
const plugManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      domain:
        memory: {guest: 128Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
          interfaces:
            - {name: defaultnetwork, masquerade: {}}
{{.interfaces}}
      networks:
        - {name: defaultnetwork, pod: {}}
{{.networks}}
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
`

// plugValues describe a VM with NICs "NAME", "NAME:STATE", "NAME=ATTACHMENT" beside the default one.
func plugValues(name string, nics ...string) map[string]string {
	var interfaces, networks []string
	for _, nic := range nics {
		nic, state, _ := strings.Cut(nic, ":")
		nic, attachment, renamed := strings.Cut(nic, "=")
		if !renamed {
			attachment = "blue-l2"
		}
		line := fmt.Sprintf("            - {name: %s, bridge: {}}", nic)
		if state != "" {
			line = fmt.Sprintf("            - {name: %s, bridge: {}, state: %s}", nic, state)
		}
		interfaces = append(interfaces, line)
		networks = append(networks, fmt.Sprintf("        - {name: %s, multus: {networkName: %s}}", nic, attachment))
	}
	return map[string]string{"name": name, "node": "node-1", "interfaces": strings.Join(interfaces, "\n"), "networks": strings.Join(networks, "\n")}
}

func applyPlug(t *testing.T, namespace, name string, nics ...string) {
	t.Helper()
	cluster.Apply(t, namespace, plugManifest, plugValues(name, nics...))
}

// awaitNICs waits until status.interfaces has these NICs in the guest, in this order, and no others.
func awaitNICs(t *testing.T, namespace, name string, want ...string) *virtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	cluster.Eventually(t, soon, "NICs "+strings.Join(want, ", ")+" of "+name, func() error {
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vmi); err != nil {
			return err
		}
		var got []string
		for _, i := range vmi.Status.Interfaces {
			if strings.Contains(i.InfoSource, "domain") {
				got = append(got, i.Name)
			}
		}
		if len(vmi.Status.Interfaces) != len(got) || !slices.Equal(got, want) {
			return fmt.Errorf("interfaces %+v, conditions %+v", vmi.Status.Interfaces, vmi.Status.Conditions)
		}
		return nil
	})
	return vmi
}

func readVM(t *testing.T, namespace, name string) *virtv1.VirtualMachine {
	t.Helper()
	vm := &virtv1.VirtualMachine{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vm); err != nil {
		t.Fatal(err)
	}
	return vm
}

// 9.6: NICs that come and go while the guest runs.
func TestHotPlug(t *testing.T) {
	ns := cluster.Namespace(t)
	cluster.Apply(t, ns, layer2Manifest, map[string]string{"name": "blue-l2", "namespace": ns, "subnet": "10.100.200.0/24"})
	cluster.Apply(t, ns, layer2Manifest, map[string]string{"name": "green-l2", "namespace": ns, "subnet": "10.100.201.0/24"})
	applyPlug(t, ns, "app-01")
	guest := cluster.Guest(t, ns, "app-01")
	before := awaitNICs(t, ns, "app-01", "defaultnetwork")
	cluster.Eventually(t, boot, "the guest agent", func() error {
		if v := cluster.Running(t, ns, "app-01"); v.Status.GuestOSInfo.ID == "" {
			return fmt.Errorf("conditions %+v", v.Status.Conditions)
		}
		return nil
	})
	empty := emptyPorts(t, guest)
	t.Run("9.6.2-K1 applying the changed VM plugs the interface", func(t *testing.T) {
		began := time.Now()
		applyPlug(t, ns, "app-01", "dyn-nic")
		awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic")
		t.Logf("plugged after %s", time.Since(began).Round(time.Millisecond))
		guest.Eventually(cluster, soon, "ls /sys/class/net", contains("eth1"))
	})
	t.Run("9.6.1-C1 the VM was not stopped", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "app-01")
		if vmi.UID != before.UID || cluster.LauncherPod(t, vmi).Status.ContainerStatuses[0].RestartCount != 0 || vmi.Status.MigrationState != nil {
			t.Errorf("the instance was %s and is %s, migration %+v", before.UID, vmi.UID, vmi.Status.MigrationState)
		}
	})
	t.Run("9.6.2-K3 the VMI's interfaces list it", func(t *testing.T) {
		cluster.Eventually(t, soon, "everything that is known of the NIC", func() error {
			for _, path := range []string{"{ @.status.interfaces }", "{@.status.interfaces}"} {
				out, err := cluster.Kubectl(t.Context(), "get", "vmi", "app-01", "-n", ns, "-ojsonpath="+path)
				if err != nil {
					return err
				}
				var list []map[string]any
				if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 {
					return fmt.Errorf("%v: %s", err, out)
				}
				if list[0]["infoSource"] != "domain, guest-agent" || list[1]["infoSource"] != "domain, guest-agent, multus-status" || list[1]["interfaceName"] != "eth1" ||
					list[1]["name"] != "dyn-nic" || list[1]["queueCount"] != 1.0 || list[1]["mac"] == "" || list[1]["linkState"] != "up" {
					return fmt.Errorf("%s", out)
				}
			}
			return nil
		})
	})
	t.Run("9.6.2-C5 the status shows it first in the pod's own order", func(t *testing.T) {
		if vmi := cluster.Running(t, ns, "app-01"); vmi.Status.Interfaces[0].Name != "defaultnetwork" || vmi.Status.Interfaces[0].IP == "" {
			t.Errorf("interfaces %+v", vmi.Status.Interfaces)
		}
	})
	t.Run("9.6.2-C8 it is a virtio device", func(t *testing.T) {
		if out := guest.Run("readlink /sys/class/net/eth1/device/driver"); !strings.HasSuffix(out, "virtio_net") {
			t.Errorf("driver %q", out)
		}
	})
	t.Run("9.6.2-C3 it carries traffic of its network", func(t *testing.T) {
		applyPlug(t, ns, "app-02", "dyn-nic")
		peer := cluster.Guest(t, ns, "app-02")
		for _, g := range []interface {
			Run(string) string
		}{guest, peer} {
			g.Run("ip link set eth1 up")
		}
		address := guest.Eventually(cluster, soon, "ip -4 -o addr show eth1 | awk '{print $4}' | cut -d/ -f1 || true; [ -n \"$(ip -4 -o addr show eth1)\" ] || udhcpc -i eth1 -n -q -f >/dev/null 2>&1",
			contains("10.100.200."))
		peer.Eventually(cluster, soon, "[ -n \"$(ip -4 -o addr show eth1)\" ] || udhcpc -i eth1 -n -q -f >/dev/null 2>&1; ping -c1 -W3 "+strings.TrimSpace(address), contains(" 0% packet loss"))
	})
	t.Run("9.6.2-C4 no migration was needed", func(t *testing.T) {
		list := &virtv1.VirtualMachineInstanceMigrationList{}
		if err := cluster.Client.List(t.Context(), list, client.InNamespace(ns)); err != nil || len(list.Items) != 0 {
			t.Errorf("%d migrations, %v", len(list.Items), err)
		}
	})
	t.Run("9.6.2-C7 network and interface are in the VMI's spec", func(t *testing.T) {
		spec := cluster.Running(t, ns, "app-01").Spec
		if len(spec.Networks) != 2 || spec.Networks[1].Name != "dyn-nic" || spec.Domain.Devices.Interfaces[1].Name != "dyn-nic" {
			t.Errorf("networks %+v", spec.Networks)
		}
	})
	t.Run("9.6.2-K5 no condition asks for a migration when it is done", func(t *testing.T) {
		cluster.Eventually(t, soon, "the end of MigrationRequired", func() error {
			for _, c := range cluster.Running(t, ns, "app-01").Status.Conditions {
				if c.Type == virtv1.VirtualMachineInstanceMigrationRequired {
					return fmt.Errorf("condition %+v", c)
				}
			}
			return nil
		})
	})
	checkPrerequisites(t, ns)
	t.Run("9.6.2-K4 addinterface is gone", func(t *testing.T) {
		user := cluster.NewClient(t)
		if out, err := user.Run(t.Context(), "", "virtctl", "addinterface", "app-01", "-n", ns, "--network-attachment-definition-name", "blue-l2", "--name", "more"); err == nil {
			t.Errorf("it worked: %s", out)
		}
	})
	t.Run("9.6.2-C6 names must match", func(t *testing.T) {
		values := plugValues("app-01", "dyn-nic")
		values["networks"] = strings.Replace(values["networks"], "name: dyn-nic", "name: other", 1)
		refusedWith(t, ns, plugManifest, values, "not found")
	})
	t.Run("9.6.3-C9 link state follows", func(t *testing.T) {
		applyPlug(t, ns, "app-01", "dyn-nic:down")
		guest.Eventually(cluster, soon, "cat /sys/class/net/eth1/carrier", contains("0"))
		applyPlug(t, ns, "app-01", "dyn-nic:up")
		guest.Eventually(cluster, soon, "cat /sys/class/net/eth1/carrier", contains("1"))
		refusedWith(t, ns, plugManifest, plugValues("app-01", "dyn-nic:sideways"), "state")
	})
	t.Run("9.6.1-C3 four slots: the fifth waits", func(t *testing.T) {
		all := plugTogether(t, ns, "third", "fourth")
		applyPlug(t, ns, "app-01", "dyn-nic", "third", "fourth", "fifth")
		awaitNICs(t, ns, "app-01", all...)
	})
	t.Run("9.6.1-C4 and is reported", func(t *testing.T) {
		awaitVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
		for _, c := range readVM(t, ns, "app-01").Status.Conditions {
			if c.Type == virtv1.VirtualMachineRestartRequired && !strings.Contains(c.Message, "interface fifth waits for a restart") {
				t.Errorf("message %q", c.Message)
			}
		}
		applyPlug(t, ns, "app-01", "dyn-nic", "third", "fourth")
		awaitNoVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
	})
	t.Run("9.6.1-C5 the machine type's ports bound the number", func(t *testing.T) {
		vmi := cluster.Running(t, ns, "app-01")
		if m := vmi.Status.Machine; m == nil || !strings.HasPrefix(m.Type, "pc-q35-") {
			t.Fatalf("machine %+v, want q35", m)
		}
		if now := emptyPorts(t, guest); now != empty-3 {
			t.Errorf("the guest had %d empty PCIe ports and has %d, want 3 less", empty, now)
		}
		refused := attachedTo("isa", "{name: default, masquerade: {}}", "{name: default, pod: {}}")
		cluster.Apply(t, ns, strings.Replace(attachingManifest, "domain:\n", "domain:\n        machine: {type: isapc}\n", 1), refused)
		hasField(t, ns, "vmi/isa", ".status.conditions", "is not supported; use q35")
	})
	t.Run("9.6.1-C2 every NIC has a slot of its own", func(t *testing.T) {
		out := guest.Run("for n in /sys/class/net/eth*; do basename $(readlink -f $n/device/..); done | sort | uniq -d")
		if strings.Contains(out, "0000:") { // the guest's log comes over the same console
			t.Errorf("shared: %q", out)
		}
	})
	t.Run("9.6.3-K1 absent unplugs", func(t *testing.T) {
		// One of them is in use.
		guest.Run("ip link set eth2 up; ip addr add 10.100.200.77/24 dev eth2; (ping -i 0.2 -I eth2 10.100.200.1; nc -l -p 99 -s 10.100.200.77) >/dev/null 2>&1 </dev/null &")
		applyPlug(t, ns, "app-01", "dyn-nic", "third:absent", "fourth:absent")
		awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic")
	})
	t.Run("9.6.3-C1 the guest has lost it", func(t *testing.T) {
		guest.Eventually(cluster, soon, "ls /sys/class/net | grep -c eth", contains("2"))
	})
	t.Run("9.6.3-C2 and the pod, the instance and the template", func(t *testing.T) {
		cluster.Eventually(t, soon, "nothing left of the interfaces", func() error {
			vmi := cluster.Running(t, ns, "app-01")
			pod := cluster.LauncherPod(t, vmi)
			text := pod.Annotations["k8s.v1.cni.cncf.io/network-status"] + pod.Annotations["k8s.v1.cni.cncf.io/networks"]
			template := readVM(t, ns, "app-01").Spec.Template.Spec
			if strings.Count(text, "blue-l2") != 2 || len(vmi.Spec.Networks) != 2 || len(template.Networks) != 2 || len(template.Domain.Devices.Interfaces) != 2 {
				return fmt.Errorf("pod %s, instance %+v, template %+v", text, vmi.Spec.Networks, template.Networks)
			}
			return nil
		})
	})
	t.Run("9.1.4-C5 bridge interfaces on layer2 networks come and go", func(t *testing.T) {
		t.Run("9.1.2-C2 by editing the VM", func(t *testing.T) {
			applyPlug(t, ns, "app-01", "dyn-nic", "again=green-l2")
			awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic", "again")
			guest.Eventually(cluster, soon, "ls -d /sys/class/net/eth*", contains("eth2"))
			applyPlug(t, ns, "app-01", "dyn-nic", "again=green-l2:absent")
			awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic")
		})
	})
	t.Run("9.6.3-C3 removing it from the spec does not unplug", func(t *testing.T) {
		applyPlug(t, ns, "app-01")
		awaitVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
		awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic")
		// Put back, it is another interface to the MAC pool: its new address comes with the next start.
		applyPlug(t, ns, "app-01", "dyn-nic")
	})
	t.Run("9.6.3-C8 absent is refused on the default network and without bridge binding", func(t *testing.T) {
		manifest := strings.Replace(plugManifest, "{name: defaultnetwork, masquerade: {}}", "{name: defaultnetwork, masquerade: {}, state: absent}", 1)
		refusedWith(t, ns, manifest, plugValues("app-01", "dyn-nic"), "absent")
	})
	t.Run("9.6.3-C4 SR-IOV is not plugged", func(t *testing.T) {
		values := plugValues("app-01", "dyn-nic", "fast")
		values["interfaces"] = strings.Replace(values["interfaces"], "{name: fast, bridge: {}}", "{name: fast, sriov: {}}", 1)
		if out, err := cluster.TryApply(t.Context(), ns, plugManifest, values); err == nil {
			awaitVMCondition(t, ns, "app-01", virtv1.VirtualMachineRestartRequired)
			applyPlug(t, ns, "app-01", "dyn-nic")
		} else if !strings.Contains(err.Error(), "SR-IOV") && !strings.Contains(err.Error(), "sriov") {
			t.Errorf("%v %s", err, out)
		}
	})
	t.Run("the network of a NIC changes in place", func(t *testing.T) {
		applyPlug(t, ns, "app-01", "dyn-nic=green-l2")
		cluster.Eventually(t, soon, "the pod on the other network", func() error {
			pod := cluster.LauncherPod(t, cluster.Running(t, ns, "app-01"))
			if status := pod.Annotations["k8s.v1.cni.cncf.io/network-status"]; !strings.Contains(status, "green-l2") {
				return fmt.Errorf("network-status %s", status)
			}
			return nil
		})
		guest.Eventually(cluster, soon, "udhcpc -i eth1 -n -q -f 2>&1; ip -4 -o addr show eth1", contains("10.100.201."))
		if vmi := cluster.Running(t, ns, "app-01"); vmi.UID != before.UID {
			t.Error("the VM was restarted")
		}
	})
	t.Run("9.6.1-C6 after a restart it is an ordinary interface", func(t *testing.T) {
		user := cluster.NewClient(t)
		if _, err := user.Run(t.Context(), "", "virtctl", "restart", "app-01", "-n", ns); err != nil {
			t.Fatal(err)
		}
		awaitAnother(t, ns, "app-01", before.UID)
		awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic")
		again := cluster.Guest(t, ns, "app-01")
		again.Eventually(cluster, soon, "ls /sys/class/net | grep -c eth", contains("2"))
	})
	t.Run("9.6.1-C7 two more can be plugged again", func(t *testing.T) {
		applyPlug(t, ns, "app-01", "dyn-nic=green-l2", "third", "fourth")
		awaitNICs(t, ns, "app-01", "defaultnetwork", "dyn-nic", "third", "fourth")
	})
}

func awaitNoVMCondition(t *testing.T, namespace, name string, kind virtv1.VirtualMachineConditionType) {
	t.Helper()
	cluster.Eventually(t, soon, "no condition "+string(kind), func() error {
		for _, c := range readVM(t, namespace, name).Status.Conditions {
			if c.Type == kind {
				return fmt.Errorf("condition %+v", c)
			}
		}
		return nil
	})
}
