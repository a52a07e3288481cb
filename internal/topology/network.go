package topology

import (
	"net/netip"
	"strings"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// Network is a network beside the default one: a tenant's primary network, or a secondary network of any pods. Everything is
// decided; nothing is left to a default.
type Network struct {
	Name     string
	ID       int // 1 to 4095, unique in the cluster and kept for the network's life
	Topology netconf.Topology
	Role     podnetworks.Role
	MTU      int // bytes
	// Subnets are the ranges of a layer2 or localnet network, or the whole ranges of a layer3 network; the primary family first.
	Subnets []netip.Prefix
	// Gateways are the router's addresses on the switch, one per subnet and in its order; empty where there is no router.
	Gateways []netip.Addr
	Physical string // localnet: name of the physical network in the nodes' bridge mappings
	VLAN     int    // localnet: 802.1Q tag, 0 for none

	// DNS and Domain are the cluster's; guests of a network with a router learn them by DHCP.
	DNS    []netip.Addr
	Domain string
}

// HasRouter tells whether the network leads anywhere else.
func (n Network) HasRouter() bool { return len(n.Gateways) > 0 }

// NetworkSwitch is the switch of a layer2 or localnet network.
func NetworkSwitch(network string) string { return "switch/" + network }

// NetworkRouter is the router of a network that has one.
func NetworkRouter(network string) string { return "router/" + network }

// NetworkRouterPort is the router's port towards the network's switch; its addresses are the network's gateways.
func NetworkRouterPort(network string) string { return "rtos/" + network }

// networkSwitchPort is the switch's port towards the router.
func networkSwitchPort(network string) string { return "stor/" + network }

// NICPort is the logical port of a virtual machine's interface. It belongs to the machine and not to one of its pods.
func NICPort(namespace, vmi, nic string) string { return "vm/" + namespace + "/" + vmi + "/" + nic }

// AttachmentPort is the logical port of a pod's own interface on a network, for one key of its annotation.
func AttachmentPort(key, namespace, pod string) string {
	return strings.NewReplacer("-", ".", "/", ".").Replace(key) + "_" + namespace + "_" + pod
}
