// Package netconf says what a network of the overlay is, as plain data: read from the configuration inside a
// NetworkAttachmentDefinition of type ovn-k8s-cni-overlay, checked, and written back in the same shape from
// UserDefinedNetworks. It is pure; it must not know who is attached to a network.
package netconf

import (
	"net/netip"

	"patchbay/internal/podnetworks"
)

// Type is the CNI type of the overlay's networks.
const Type = "ovn-k8s-cni-overlay"

// Topology is how a network is laid out.
type Topology string

const (
	Layer2   Topology = "layer2"   // one switch over all nodes
	Layer3   Topology = "layer3"   // one switch per node, joined by a router
	Localnet Topology = "localnet" // a physical network of the nodes
)

// Network is one network. Several NetworkAttachmentDefinitions may name it; all must say the same of it.
type Network struct {
	Name     string // of the network, not of the definition: the key of all its rows
	Topology Topology
	Role     podnetworks.Role // Primary or Secondary
	MTU      int              // bytes; 0: the cluster's
	Subnets  []Subnet         // at most one per family in layer2 and localnet; empty: the network has no addresses of its own
	Excluded []netip.Prefix   // never given out
	Reserved []netip.Prefix   // given out on request only
	// Infrastructure is where gateways and management addresses come from; never given to workloads.
	Infrastructure []netip.Prefix
	Gateways       []netip.Addr // wished router addresses; empty: the first of each subnet
	Join           []netip.Prefix
	Transit        []netip.Prefix
	Persistent     bool   // addresses outlive pods when an IPAMClaim asks for it
	Physical       string // localnet: the physical network's name in the nodes' bridge mappings
	VLAN           int    // localnet: 802.1Q tag, 0 for none
}

// Subnet is a range of a network's addresses.
type Subnet struct {
	CIDR     netip.Prefix
	HostBits int // layer3: prefix length of one node's slice; 0 otherwise
}
