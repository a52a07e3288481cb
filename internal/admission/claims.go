package admission

import (
	"slices"

	virtv1 "kubevirt.io/api/core/v1"
)

// claims are the rules that come next in the published order: unique network names, then networks that a resource claim gives.
func (c *checker) claims() {
	c.uniqueNetworkNames()
	if !slices.ContainsFunc(c.spec.Networks, func(n virtv1.Network) bool { return n.ResourceClaim != nil }) {
		return
	}
	if !c.policy.Gates(GateNetworkDevicesWithDRA) {
		c.invalid(c.root.Child("networks"), "vmi.spec.networks contains DRA networks but NetworkDevicesWithDRA feature gate is not enabled")
		return
	}
	if slices.ContainsFunc(c.spec.Networks, func(n virtv1.Network) bool { return n.Multus != nil }) {
		c.invalid(c.root.Child("networks"), "mixing Multus and DRA resourceClaim networks in the same VMI is not supported")
	}
	c.claimBindings()
	c.claimReferences()
}

func (c *checker) uniqueNetworkNames() {
	seen := map[string]bool{}
	for i, n := range c.spec.Networks {
		if seen[n.Name] {
			c.duplicate(c.net(i).Child("name"), "Network with name %q already exists, every network must have a unique name", n.Name)
		}
		seen[n.Name] = true
	}
}

func (c *checker) claimBindings() {
	for _, iface := range c.spec.Domain.Devices.Interfaces {
		n := c.network(iface.Name)
		if n != nil && n.ResourceClaim != nil && iface.SRIOV == nil && iface.Binding == nil {
			c.invalid(c.root.Child("domain", "devices", "interfaces"),
				"DRA network %q requires an SR-IOV or binding plugin interface", n.Name)
		}
	}
}

func (c *checker) claimReferences() {
	known := map[string]bool{}
	for _, claim := range c.spec.ResourceClaims {
		known[claim.Name] = true
	}
	used := map[string]bool{}
	for i, n := range c.spec.Networks {
		if n.ResourceClaim == nil {
			continue
		}
		at := c.net(i).Child("resourceClaim")
		claim, request := n.ResourceClaim.ClaimName, n.ResourceClaim.RequestName
		if claim == "" {
			c.required(at.Child("claimName"), "claimName is required for DRA network")
		} else if !known[claim] {
			c.notFound(at.Child("claimName"), "network references resourceClaim %q which is not defined in spec.resourceClaims", claim)
		}
		if request == "" {
			c.required(at.Child("requestName"), "requestName is required for DRA network")
		}
		if key := claim + "/" + request; claim != "" && request != "" {
			if used[key] {
				c.duplicate(c.net(i), "duplicate claimName/requestName combination %q", key)
			}
			used[key] = true
		}
	}
}

// names are the rules that pair interfaces with networks.
func (c *checker) names() {
	all := c.spec.Domain.Devices.Interfaces
	byName := map[string]bool{}
	for _, iface := range all {
		byName[iface.Name] = true
	}
	for i, n := range c.spec.Networks {
		if at := c.net(i).Child("name"); !byName[n.Name] {
			c.required(at, "%s '%s' not found.", at, n.Name)
		}
	}
	seen := map[string]bool{}
	for i, iface := range all {
		if seen[iface.Name] {
			c.duplicate(c.iface(i).Child("name"), "Only one interface can be connected to one specific network")
		}
		seen[iface.Name] = true
	}
	for i, iface := range all {
		if at := c.iface(i).Child("name"); c.network(iface.Name) == nil {
			c.invalid(at, "%s '%s' not found.", at, iface.Name)
		}
	}
}
