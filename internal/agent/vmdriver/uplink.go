package vmdriver

import (
	"fmt"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// uplink is the interface of the machine's pod that belongs to the NIC's network. It may be no device but a logical port that waits for
// the guest's tap: see podnet.Interface.Tap.
func (n NIC) uplink() (podnet.Interface, error) {
	if n.Network.Multus == nil || n.Network.Multus.Default {
		if i, ok := n.Pod.Primary(); ok {
			return i, nil
		}
		return podnet.Interface{}, fmt.Errorf("interface %q: pod %s/%s has no network interface", n.Interface.Name, n.Pod.Namespace, n.Pod.Name)
	}
	for _, name := range []string{podnetworks.InterfaceName(n.Network.Name), ordinalName(n.VMI, n.Network.Name)} {
		if i, ok := n.Pod.Interface(name); ok {
			return i, nil
		}
	}
	return podnet.Interface{}, NotYet(fmt.Errorf("interface %q: pod %s/%s is not attached to network %s yet", n.Interface.Name, n.Pod.Namespace, n.Pod.Name,
		n.Network.Multus.NetworkName))
}

// ordinalName is how KubeVirt before 1.0 called the interface of a secondary network; a machine that began there keeps the names.
func ordinalName(vmi *virtv1.VirtualMachineInstance, network string) string {
	n := 0
	for _, other := range vmi.Spec.Networks {
		if other.Multus == nil || other.Multus.Default {
			continue
		}
		n++
		if other.Name == network {
			return fmt.Sprintf("net%d", n)
		}
	}
	return ""
}
