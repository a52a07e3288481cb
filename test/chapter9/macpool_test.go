package chapter9

import (
	"fmt"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// haltedManifest is a machine that need not run: its addresses are decided when it is written.
const haltedManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Halted
  template:
    spec:
      domain:
        memory: {guest: 64Mi}
        devices: {interfaces: {{.nics}}}
      networks: {{.networks}}
`

const (
	onePod    = "[{name: pod, pod: {}}]"
	podAndTwo = "[{name: pod, pod: {}}, {name: blue, multus: {networkName: blue}}, {name: red, multus: {networkName: red}}]"
	hcoName   = "kubevirt-hyperconverged"
)

// halted makes such a machine and returns the addresses of its NICs in order.
func halted(t *testing.T, namespace, name, nics, networks string) []string {
	t.Helper()
	cluster.Apply(t, namespace, haltedManifest, map[string]string{"name": name, "nics": nics, "networks": networks})
	return addresses(t, namespace, name)
}

func addresses(t *testing.T, namespace, name string) []string {
	t.Helper()
	vm := &virtv1.VirtualMachine{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vm); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, nic := range vm.Spec.Template.Spec.Domain.Devices.Interfaces {
		all = append(all, nic.MacAddress)
	}
	return all
}

func hcoNamespace(t *testing.T) string {
	t.Helper()
	return strings.Fields(kubectl(t, "get", "hco", "-A", "--no-headers"))[0]
}

// 9.10: addresses from the pool.
func TestMACPool(t *testing.T) {
	ns := cluster.Namespace(t)
	t.Run("9.10.1-C1 on by default", func(t *testing.T) {
		if mac := halted(t, ns, "first", "[{name: pod, masquerade: {}}]", onePod)[0]; mac == "" {
			t.Error("the machine got no address")
		}
	})
	t.Run("9.10.1-C2 every interface has a unique address from one pool", func(t *testing.T) {
		start := strings.ToLower(kubectl(t, "get", "configmap", "kubemacpool-mac-range-config", "-n", "patchbay-system", "-o", "jsonpath={.data.RANGE_START}"))
		seen := map[string]string{}
		for n := range 5 {
			name := fmt.Sprint("many-", n)
			for _, mac := range halted(t, ns, name, "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}, {name: red, bridge: {}}]", podAndTwo) {
				if other := seen[mac]; other != "" || !strings.HasPrefix(mac, start[:len("02:00:00")]) {
					t.Errorf("%s has %q, the pool begins with %s, and %q has it too", name, mac, start, other)
				}
				seen[mac] = name
			}
		}
	})
	t.Run("9.10.1-C8 for secondary NICs, and for the first one behind masquerade", func(t *testing.T) {
		got := halted(t, ns, "bridged", "[{name: pod, bridge: {}}, {name: blue, bridge: {}}, {name: red, bridge: {}}]", podAndTwo)
		if got[0] != "" || got[1] == "" || got[2] == "" {
			t.Errorf("a bridge NIC of the pod network and two secondary ones: %q", got)
		}
	})
	t.Run("9.1.6-C1 an address is the machine's", func(t *testing.T) {
		t.Run("9.10.1-C3 kept over restarts and the manifest applied again", func(t *testing.T) { keepsAddress(t, ns) })
	})
	t.Run("9.10.1-C4 instances without a machine are not handled", func(t *testing.T) {
		cluster.Apply(t, ns, strings.NewReplacer("VirtualMachine\n", "VirtualMachineInstance\n").Replace(`
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: alone}
spec:
  domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: pod, masquerade: {}}]}}
  networks: [{name: pod, pod: {}}]
`), nil)
		if mac := kubectl(t, "get", "vmi", "alone", "-n", ns, "-o", "jsonpath={.spec.domain.devices.interfaces[0].macAddress}"); mac != "" {
			t.Errorf("it got %s", mac)
		}
		kubectl(t, "delete", "vmi", "alone", "-n", ns)
	})
	t.Run("optOut", optOut)
	t.Run("collisions", collisions)
	t.Run("range", poolRange)
}

func keepsAddress(t *testing.T, ns string) {
	m := machine{name: "keeper"}
	m.apply(t, ns)
	mac := addresses(t, ns, "keeper")[0]
	vmi := cluster.Running(t, ns, "keeper")
	guest := cluster.Guest(t, ns, "keeper")
	guest.Eventually(cluster, boot, "cat /sys/class/net/eth0/address", contains(mac))
	if vmi.Status.Interfaces[0].MAC != mac {
		t.Errorf("the status says %s, the machine has %s", vmi.Status.Interfaces[0].MAC, mac)
	}
	if m.apply(t, ns); addresses(t, ns, "keeper")[0] != mac {
		t.Errorf("the manifest applied again changed the address from %s to %s", mac, addresses(t, ns, "keeper")[0])
	}
	if _, err := cluster.Kubectl(t.Context(), "delete", "vmi", "keeper", "-n", ns); err != nil { // the machine starts anew in another pod
		t.Fatal(err)
	}
	cluster.Eventually(t, boot, "another instance runs", func() error {
		now := &virtv1.VirtualMachineInstance{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(vmi), now); err != nil {
			return err
		}
		if now.UID == vmi.UID || now.Status.Phase != virtv1.Running || len(now.Status.Interfaces) == 0 {
			return fmt.Errorf("still %s of %s", now.Status.Phase, now.UID)
		}
		if now.Status.Interfaces[0].MAC != mac {
			t.Errorf("the new instance has %s, want %s", now.Status.Interfaces[0].MAC, mac)
		}
		return nil
	})
	cluster.Guest(t, ns, "keeper").Eventually(cluster, boot, "cat /sys/class/net/eth0/address", contains(mac))
}

func optOut(t *testing.T) {
	one, two := cluster.Namespace(t), cluster.Namespace(t)
	const nic = "[{name: pod, masquerade: {}}]"
	t.Run("9.10.1-K1 one command for several namespaces", func(t *testing.T) {
		out := kubectl(t, "label", "namespace", one, two, "mutatevirtualmachines.kubemacpool.io=ignore")
		if want := "namespace/" + one + " labeled\nnamespace/" + two + " labeled"; out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
	})
	t.Run("9.10.1-C5 off in both", func(t *testing.T) {
		for _, ns := range []string{one, two} {
			eventuallyHas(t, ns, nic, false)
		}
	})
	t.Run("9.10.1-K2 the label taken off", func(t *testing.T) {
		out := kubectl(t, "label", "namespace", one, two, "mutatevirtualmachines.kubemacpool.io-")
		if want := "namespace/" + one + " unlabeled\nnamespace/" + two + " unlabeled"; out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
	})
	t.Run("9.10.1-C6 on again in both", func(t *testing.T) {
		for _, ns := range []string{one, two} {
			eventuallyHas(t, ns, nic, true)
		}
	})
}

// eventuallyHas makes machines until one has an address, or none: the API server learns of a label a moment later.
func eventuallyHas(t *testing.T, ns, nics string, wanted bool) {
	t.Helper()
	n := 0
	cluster.Eventually(t, soon, fmt.Sprintf("a machine of %s has an address: %v", ns, wanted), func() error {
		n++
		if mac := halted(t, ns, fmt.Sprintf("try-%v-%d", wanted, n), nics, onePod)[0]; (mac != "") != wanted {
			return fmt.Errorf("it has %q", mac)
		}
		return nil
	})
}

const duplicate = "[{name: pod, masquerade: {}, macAddress: '0e:00:00:00:00:07'}]"

func collisions(t *testing.T) {
	ns, other := cluster.Namespace(t), cluster.Namespace(t)
	t.Run("9.10.1-C2 one address on two NICs of a machine is refused", func(t *testing.T) {
		refusedWith(t, ns, haltedManifest, map[string]string{"name": "twice", "networks": podAndTwo,
			"nics": "[{name: pod, masquerade: {}, macAddress: '0e:00:00:00:00:01'}, {name: blue, bridge: {}, macAddress: '0e:00:00:00:00:01'}, {name: red, bridge: {}}]"},
			"duplicate MAC address 0e:00:00:00:00:01 found on interfaces: pod and blue")
	})
	t.Run("running machines with one address are reported", func(t *testing.T) {
		const mac = "0e:00:00:00:00:09"
		machine{name: "a", iface: "macAddress: '" + mac + "'"}.apply(t, ns)
		machine{name: "b", iface: "macAddress: '" + mac + "'", node: "node-2"}.apply(t, other)
		cluster.Running(t, ns, "a")
		cluster.Running(t, other, "b")
		for _, x := range [][2]string{{ns, "a"}, {other, "b"}} {
			cluster.Eventually(t, soon, "an event and a condition on both", func() error {
				event := kubectl(t, "get", "events", "-n", x[0], "--field-selector=reason=MACCollision", "-o", "jsonpath={.items[*].message}")
				condition := kubectl(t, "get", "vm", x[1], "-n", x[0], "-o", "jsonpath={.status.conditions[?(@.type=='MACCollision')].message}")
				if want := "MAC " + mac + ": Collision between "; !strings.Contains(event, want) || !strings.Contains(condition, want) {
					return fmt.Errorf("event %q, condition %q", event, condition)
				}
				return nil
			})
		}
		kubectl(t, "delete", "vm", "b", "-n", other)
		cluster.Eventually(t, soon, "the condition goes with the second machine", func() error {
			if text := kubectl(t, "get", "vmi", "a", "-n", ns, "-o", "jsonpath={.status.conditions[?(@.type=='MACCollision')].message}"); text != "" {
				return fmt.Errorf("it says %q", text)
			}
			return nil
		})
		kubectl(t, "delete", "vm", "a", "-n", ns)
	})
	t.Run("9.10.1-C7 a strict pool refuses an address in use, also outside the range", func(t *testing.T) {
		home := hcoNamespace(t)
		halted(t, ns, "holder", duplicate, onePod)
		kubectl(t, "annotate", "hco", hcoName, "-n", home, "patchbay.io/refuse-duplicate-macs=true")
		defer kubectl(t, "annotate", "hco", hcoName, "-n", home, "patchbay.io/refuse-duplicate-macs-")
		n := 0
		cluster.Eventually(t, soon, "a machine with that address is refused", func() error {
			n++
			_, err := cluster.TryApply(t.Context(), other, haltedManifest, map[string]string{"name": fmt.Sprint("copy-", n), "nics": duplicate, "networks": onePod})
			if err == nil || !strings.Contains(err.Error(), "Failed to allocate mac to the vm object: failed to allocate requested mac address") {
				return fmt.Errorf("want a refusal, got %v", err)
			}
			return nil
		})
	})
}

func poolRange(t *testing.T) {
	ns, home := cluster.Namespace(t), hcoNamespace(t)
	set := func(start, end string) error {
		_, err := cluster.Kubectl(t.Context(), "patch", "hco", hcoName, "-n", home, "--type=merge", "-p",
			fmt.Sprintf(`{"spec":{"kubeMacPoolConfiguration":{"rangeStart":%q,"rangeEnd":%q}}}`, start, end))
		return err
	}
	t.Run("9.10.1-C9 an address lies inside the chosen range", func(t *testing.T) {
		if err := set("AA:00:00:00:00:00", "AA:00:00:FF:FF:FF"); err != nil {
			t.Fatal(err)
		}
		n := 0
		cluster.Eventually(t, soon, "a machine has an address of the range", func() error {
			n++
			if mac := halted(t, ns, fmt.Sprint("in-range-", n), "[{name: pod, masquerade: {}}]", onePod)[0]; !strings.HasPrefix(mac, "aa:00:00:") {
				return fmt.Errorf("it has %s", mac)
			}
			return nil
		})
	})
	t.Run("9.10.1-K3 the range is read from HyperConverged", func(t *testing.T) {
		for _, kind := range []string{"hco", "hyperconverged", "hyperconvergeds.v1beta1.hco.kubevirt.io"} {
			out := kubectl(t, "get", kind, hcoName, "-n", home, "-o=jsonpath={.spec.kubeMacPoolConfiguration}")
			if want := `{"rangeEnd":"AA:00:00:FF:FF:FF","rangeStart":"AA:00:00:00:00:00"}`; out != want {
				t.Errorf("%s: %s, want %s", kind, out, want)
			}
		}
	})
	t.Run("9.10.1-C9 bad ranges are refused", func(t *testing.T) {
		for _, bad := range [][3]string{
			{"AA:00:00:00:00:00", "FD:FF:FF:FF:FF:FF", "failed to set RangeEnd: invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0XFD"},
			{"02:00:00:00:00:FF", "02:00:00:00:00:00", "Range end is lesser than or equal to its start"},
			{"02:00:00:00:00", "02:00:00:00:00:FF", "should match"},
		} {
			if err := set(bad[0], bad[1]); err == nil || !strings.Contains(err.Error(), bad[2]) {
				t.Errorf("%s - %s: %v, want %q", bad[0], bad[1], err, bad[2])
			}
		}
	})
}
