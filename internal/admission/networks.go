package admission

import (
	virtv1 "kubevirt.io/api/core/v1"
)

// reservedMAC is the address of the bridge inside a pod with a masquerade NIC. It is the same in every pod, so that a guest's
// neighbour entry for its gateway survives migration.
const reservedMAC = "02:00:00:00:00:00"

// networks are the rules about networks and their sources.
func (c *checker) networks() {
	c.retiredBindings()
	pods, defaults := 0, 0
	for _, n := range c.spec.Networks {
		if n.Pod != nil {
			pods++
		}
		if n.Multus != nil && n.Multus.Default {
			defaults++
		}
	}
	if pods > 1 {
		at := c.root.Child("interfaces")
		c.duplicate(at, "more than one interface is connected to a pod network in %s", at)
	}
	if defaults > 1 {
		c.invalid(c.root.Child("networks"), "Multus CNI should only have one default network")
	}
	if pods > 0 && defaults > 0 {
		c.invalid(c.root.Child("networks"), "Pod network cannot be defined when Multus default network is defined")
	}
	c.networkSources()
}

func (c *checker) retiredBindings() {
	if !c.creating {
		return
	}
	for i, iface := range c.spec.Domain.Devices.Interfaces {
		if iface.DeprecatedSlirp != nil {
			c.invalid(c.iface(i).Child("slirp"), "Slirp interface support has been discontinued since v1.3")
		}
		if iface.DeprecatedPasst != nil {
			c.invalid(c.iface(i).Child("passt"), "Passt network binding has been discontinued since v1.3")
		}
		if iface.DeprecatedMacvtap != nil {
			c.invalid(c.iface(i).Child("macvtap"), "Macvtap network binding has been discontinued since v1.3")
		}
	}
}

func (c *checker) networkSources() {
	for i, n := range c.spec.Networks {
		switch sources := countSources(n); {
		case sources == 0:
			c.required(c.net(i), "should have a network type")
		case sources > 1:
			c.required(c.net(i), "should have only one network type")
		}
	}
	for i, n := range c.spec.Networks {
		if n.Multus != nil && n.Multus.NetworkName == "" {
			c.required(c.net(i), "CNI delegating plugin must have a networkName")
			return // published releases stop at the first
		}
	}
}

func countSources(n virtv1.Network) int {
	return count(n.Pod != nil, n.Multus != nil, n.ResourceClaim != nil)
}

func count(set ...bool) int {
	total := 0
	for _, s := range set {
		if s {
			total++
		}
	}
	return total
}

// bindings are the rules about an interface's state and binding.
func (c *checker) bindings() {
	all := c.spec.Domain.Devices.Interfaces
	for i, iface := range all {
		c.state(i, iface)
	}
	for i, iface := range all {
		if count(iface.Bridge != nil, iface.Masquerade != nil, iface.SRIOV != nil, iface.PasstBinding != nil, iface.Binding != nil) != 1 {
			c.invalid(c.iface(i), "logical %s interface must have exactly one binding method or binding plugin", iface.Name)
		}
	}
	for i, iface := range all {
		c.masquerade(i, iface)
	}
	for i, iface := range all {
		if iface.Bridge != nil && c.onPod(iface) && !c.policy.BridgeOnPod {
			c.invalid(c.iface(i).Child("name"), "Bridge on pod network configuration is not enabled under kubevirt-config")
		}
	}
	for i, iface := range all {
		c.passt(i, iface)
	}
}

func (c *checker) state(i int, iface virtv1.Interface) {
	at := c.iface(i).Child("state")
	switch iface.State {
	case "":
	case virtv1.InterfaceStateLinkUp, virtv1.InterfaceStateLinkDown:
		if iface.SRIOV != nil {
			c.invalid(at, "%q interface's state %q is not supported for SR-IOV NICs", iface.Name, iface.State)
		}
	case virtv1.InterfaceStateAbsent:
		if iface.Bridge == nil {
			c.invalid(at, `%q interface's state "absent" is supported only for bridge binding`, iface.Name)
		}
		if primary(c.network(iface.Name)) {
			c.invalid(at, `%q interface's state "absent" is not supported on default networks`, iface.Name)
		}
	default:
		c.invalid(at, "logical %s interface state value is unsupported: %s", iface.Name, iface.State)
	}
}

func (c *checker) masquerade(i int, iface virtv1.Interface) {
	if iface.Masquerade == nil {
		return
	}
	if c.elsewhere(iface) {
		c.invalid(c.iface(i).Child("name"), "Masquerade interface only implemented with pod network")
	}
	if iface.MacAddress == reservedMAC {
		c.invalid(c.iface(i).Child("macAddress"), "The requested MAC address is reserved for the in-pod bridge. Please choose another one.")
	}
}

func (c *checker) passt(i int, iface virtv1.Interface) {
	if iface.PasstBinding == nil {
		return
	}
	if !c.policy.Gates(GatePasstBinding) {
		c.invalid(c.iface(i).Child("name"), "PasstBinding feature gate is not enabled")
	}
	if c.elsewhere(iface) {
		c.invalid(c.iface(i).Child("name"), "PasstBinding interface only implemented with pod network")
	}
}
