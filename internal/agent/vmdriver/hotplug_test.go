package vmdriver

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// extra is a NIC on a secondary network.
func extra(name string, state virtv1.InterfaceState) (virtv1.Interface, virtv1.Network) {
	i := virtv1.Interface{Name: name, State: state, MacAddress: "02:00:00:00:00:02"}
	i.Bridge = &virtv1.InterfaceBridge{}
	return i, virtv1.Network{Name: name, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "blue"}}}
}

// edit changes the instance as the controller would, and tells the agent.
func (n *node) edit(change func(*virtv1.VirtualMachineInstance)) {
	n.t.Helper()
	eventually(n.t, "a write", func() bool {
		vmi := n.vmi()
		change(vmi)
		return n.client.Update(n.t.Context(), vmi) == nil
	})
	n.nudge()
}

// liveRecords is a pod that is attached to more networks while it runs.
type liveRecords struct {
	mu  sync.Mutex
	pod podnet.Pod
}

func (r *liveRecords) Get(types.UID) (podnet.Pod, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pod, true
}

// attach attaches the pod to the network of a NIC.
func (r *liveRecords) attach(nic, attachment string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := podnet.Interface{Name: podnetworks.InterfaceName(nic), Attachment: attachment}
	r.pod.Interfaces = append(slices.DeleteFunc(slices.Clone(r.pod.Interfaces), func(o podnet.Interface) bool { return o.Name == i.Name }), i)
}

func (n *node) add(name string) {
	n.t.Helper()
	n.edit(func(vmi *virtv1.VirtualMachineInstance) {
		i, network := extra(name, "")
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, i)
		vmi.Spec.Networks = append(vmi.Spec.Networks, network)
	})
}

func (n *node) setState(name string, state virtv1.InterfaceState) {
	n.t.Helper()
	n.edit(func(vmi *virtv1.VirtualMachineInstance) {
		for k, i := range vmi.Spec.Domain.Devices.Interfaces {
			if i.Name == name {
				vmi.Spec.Domain.Devices.Interfaces[k].State = state
			}
		}
	})
}

func (n *node) waitInterfaces(want ...string) {
	n.t.Helper()
	eventually(n.t, "interfaces "+strings.Join(want, ", "), func() bool {
		var got []string
		for _, i := range n.vmi().Status.Interfaces {
			got = append(got, i.Name+" "+i.LinkState)
		}
		return slices.Equal(got, want)
	})
}

func hotPlugNode(t *testing.T) *node {
	t.Helper()
	n := prepareNode(t, nil)
	n.wirers[BindingBridge] = n.wirer
	n.records = &liveRecords{pod: podnet.Pod{UID: podUID, Interfaces: []podnet.Interface{{Name: "eth0"}}}}
	n.pods = n.records
	for _, name := range []string{"blue", "b", "c", "d", "e"} {
		n.records.attach(name, "default/blue")
	}
	n.pod = newFakePod(t, (&Driver{Config: Config{KubeletRoot: n.root}}).runDir(podUID))
	n.pod.onEnd = n.nudge
	n.begin()
	n.waitPhase(virtv1.Running)
	return n
}

func (n *node) waitDump(parts ...string) {
	n.t.Helper()
	eventually(n.t, strings.Join(parts, " and "), func() bool {
		dump := n.pod.machine.Dump()
		return !slices.ContainsFunc(parts, func(part string) bool {
			if absent, ok := strings.CutPrefix(part, "no "); ok {
				return strings.Contains(dump, absent)
			}
			return !strings.Contains(dump, part)
		})
	})
}

func TestPlugAndUnplug(t *testing.T) {
	n := hotPlugNode(t)
	n.waitInterfaces("default up")
	n.add("blue")
	n.waitInterfaces("default up", "blue up")
	n.waitDump("device nic-blue: virtio-net-pci in port2, netdev net-blue, mac 02:00:00:00:00:02\n", "no file ")
	eventually(t, "both servers", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.serving == 2 })
	n.setState("blue", virtv1.InterfaceStateLinkDown)
	n.waitInterfaces("default up", "blue down")
	n.waitDump("mac 02:00:00:00:00:02, link down")
	n.setState("blue", virtv1.InterfaceStateAbsent)
	n.waitInterfaces("default up")
	n.waitDump("no nic-blue", "no net-blue", "device nic-default")
	eventually(t, "one server", func() bool {
		n.wirer.mu.Lock()
		defer n.wirer.mu.Unlock()
		return n.wirer.serving == 1 && n.wirer.left == 1
	})
	n.setState("blue", "") // which the controller would not do; the agent does as it is told
	n.waitInterfaces("default up", "blue up")
}

// An agent may be killed between any two commands. The next one finds what is left in QEMU, and the guest has the card once.
func TestPlugThatWasCutShort(t *testing.T) {
	left := map[string][]string{
		"after the descriptor": {`getfd {"fdname":"net-blue-tap0"}`},
		"after the backend":    {`getfd {"fdname":"net-blue-tap0"}`, `netdev_add {"id":"net-blue","type":"tap","fd":"net-blue-tap0"}`},
		"after the device": {`getfd {"fdname":"net-blue-tap0"}`, `netdev_add {"id":"net-blue","type":"tap","fd":"net-blue-tap0"}`,
			`device_add {"id":"nic-blue","driver":"virtio-net-pci","netdev":"net-blue","bus":"port2","mac":"02:00:00:00:00:02"}`},
	}
	for name, commands := range left {
		t.Run(name, func(t *testing.T) {
			n := hotPlugNode(t)
			n.stop()
			n.add("blue")
			for _, c := range commands {
				n.pod.monitorCommand(t, c)
			}
			n.begin()
			n.waitInterfaces("default up", "blue up")
			n.waitDump("device nic-blue", "netdev net-blue", "no file ")
			if count := strings.Count(n.pod.machine.Dump(), "nic-blue"); count != 1 {
				t.Errorf("the guest has the card %d times:\n%s", count, n.pod.machine.Dump())
			}
		})
	}
}

// The same for an unplug: the guest may have let the card go while nobody looked.
func TestUnplugThatWasCutShort(t *testing.T) {
	left := map[string][]string{
		"before the guest was asked": nil,
		"after the device":           {`device_del {"id":"nic-blue"}`},
		"after the backend":          {`device_del {"id":"nic-blue"}`, `netdev_del {"id":"net-blue"}`},
	}
	for name, commands := range left {
		t.Run(name, func(t *testing.T) {
			n := hotPlugNode(t)
			n.add("blue")
			n.waitInterfaces("default up", "blue up")
			n.stop()
			n.setState("blue", virtv1.InterfaceStateAbsent)
			for _, c := range commands {
				n.pod.monitorCommand(t, c)
			}
			n.begin()
			n.waitInterfaces("default up")
			n.waitDump("no nic-blue", "device nic-default")
		})
	}
}

// A guest that does not listen keeps its card, and loses it when it reboots.
func TestGuestKeepsCard(t *testing.T) {
	n := hotPlugNode(t)
	n.add("blue")
	n.waitInterfaces("default up", "blue up")
	n.pod.machine.Obedient = false
	n.setState("blue", virtv1.InterfaceStateAbsent)
	n.waitDump("asked to leave")
	n.pod.monitorCommand(t, `system_reset {}`)
	n.waitInterfaces("default up")
}

func TestPlugWaitsForNetwork(t *testing.T) {
	n := hotPlugNode(t)
	n.add("late")
	n.add("blue") // which does not wait for the other
	n.waitInterfaces("default up", "blue up")
	if n.events.has("HotPlugNetworkInterfaceError") {
		t.Error("people are told of what is only a matter of time")
	}
	n.records.attach("late", "default/blue")
	n.nudge() // the pod's annotation changes with its networks
	n.waitInterfaces("default up", "late up", "blue up")
}

func TestPlugFailureIsTold(t *testing.T) {
	n := hotPlugNode(t)
	for _, name := range []string{"b", "c", "d", "e"} {
		n.add(name)
	}
	n.waitCondition(virtv1.VirtualMachineInstanceSynchronized, "HotPlugNetworkInterfaceError")
	n.waitEvent(`plug interface "e": interface e: no PCI port is free; restart the VM`)
	n.waitInterfaces("default up", "b up", "c up", "d up")
	n.setState("e", virtv1.InterfaceStateAbsent)
	eventually(t, "the end of the condition", func() bool {
		return !slices.ContainsFunc(n.vmi().Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
			return c.Type == virtv1.VirtualMachineInstanceSynchronized
		})
	})
}

func TestNetworkOfCardChanges(t *testing.T) {
	n := hotPlugNode(t)
	n.add("blue")
	n.waitInterfaces("default up", "blue up")
	n.wirer.mu.Lock()
	n.wirer.freshen = 0
	n.wirer.mu.Unlock()
	n.edit(func(vmi *virtv1.VirtualMachineInstance) { vmi.Spec.Networks[1].Multus.NetworkName = "green" })
	n.waitInterfaces("default up", "blue up")
	n.records.attach("blue", "default/green")
	n.nudge()
	eventually(t, "the card to be joined to the other network", func() bool {
		n.wirer.mu.Lock()
		defer n.wirer.mu.Unlock()
		return n.wirer.freshen == 1 && n.wirer.serving == 2
	})
	n.waitDump("device nic-blue: virtio-net-pci in port2, netdev net-blue, mac 02:00:00:00:00:02, link down\n")
	n.waitDump("device nic-blue: virtio-net-pci in port2, netdev net-blue, mac 02:00:00:00:00:02\n")
	n.waitInterfaces("default up", "blue up")
}
