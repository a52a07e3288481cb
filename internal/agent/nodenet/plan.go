// Package nodenet is the node's own side of the overlay: the management port through which the node reaches pods and pods
// reach the world, the routes, and the nftables rules for egress, NodePorts and load balancer addresses. It works in the
// network namespace that the agent runs in and must not touch pods or their devices.
package nodenet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"patchbay/internal/agent/ovs"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

const (
	// ManagementDevice is the node's port on the cluster's network.
	ManagementDevice = "pb-mp0"

	owner = "nodenet"
)

// ErrNoSubnets says that the network controller has not given the node its subnets yet.
var ErrNoSubnets = errors.New("the network controller has not written annotation " + podnetworks.NodeAnnotation + " to the node yet")

// Plan is what the node's side of the overlay looks like: pure data.
type Plan struct {
	Logical  string         // logical switch port of the management port
	MAC      string         // of the management port
	IPs      []netip.Prefix // of the management port: .2 of each node subnet
	Gateways []netip.Addr   // .1 of each node subnet
	MTU      int
	Routes   []netip.Prefix // reached through the gateway of their family
	Overlay  []netip.Prefix // ranges inside: their addresses must not leave the node unmasqueraded
	Entries  []netip.Addr   // the node's addresses towards tenants' services
}

// NewPlan computes the plan from the node object. The result has one address per family of the settings.
func NewPlan(s settings.Settings, node *corev1.Node) (Plan, error) {
	networks, err := podnetworks.ParseNode(node.Annotations)
	if err != nil {
		return Plan{}, fmt.Errorf("node %s: %w", node.Name, err)
	}
	subnets := networks[podnetworks.Default]
	if len(subnets) == 0 {
		return Plan{}, ErrNoSubnets
	}
	p := Plan{Logical: topology.ManagementPort(node.Name), MTU: s.PodMTU}
	p.Overlay = append(p.Overlay, s.ClusterCIDRs...)
	for _, inside := range append(topology.Transit(), topology.Entry()...) {
		if slices.ContainsFunc(s.ClusterCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() == inside.Addr().Is4() }) {
			p.Overlay = append(p.Overlay, inside)
		}
	}
	p.Routes = append(append(p.Routes, p.Overlay...), s.ServiceCIDRs...)
	for _, subnet := range subnets {
		p.Gateways = append(p.Gateways, podnetworks.Gateway(subnet))
		p.Entries = append(p.Entries, topology.EntryAddress(subnet))
		p.IPs = append(p.IPs, netip.PrefixFrom(podnetworks.Management(subnet), subnet.Bits()))
	}
	p.MAC = podnetworks.MAC(p.IPs[0].Addr()).String()
	return p, nil
}

// port is how the management port is plugged.
func (p Plan) port() ovs.Port {
	return ovs.Port{Name: ManagementDevice, Logical: p.Logical, Owner: owner, Type: "internal", MAC: p.MAC, MTU: p.MTU}
}

// gateway returns the gateway of an address's family.
func (p Plan) gateway(family netip.Addr) (netip.Addr, bool) {
	for _, g := range p.Gateways {
		if g.Is4() == family.Is4() {
			return g, true
		}
	}
	return netip.Addr{}, false
}

// ip returns the management port's address of a family.
func (p Plan) ip(is4 bool) (netip.Addr, bool) {
	for _, ip := range p.IPs {
		if ip.Addr().Is4() == is4 {
			return ip.Addr(), true
		}
	}
	return netip.Addr{}, false
}
