// Package netpolicy reads NetworkPolicies and MultiNetworkPolicies: what they select, and what they allow. It is pure; it must not know
// which pods or networks there are.
package netpolicy

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"
)

// Kinds of policies.
const (
	Plain = "NetworkPolicy"
	Multi = "MultiNetworkPolicy"
)

// Key names a policy.
type Key struct{ Kind, Namespace, Name string }

// Direction is one of the two directions that a policy speaks of.
type Direction int

// The directions, as the selected pod sees them.
const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string { return [...]string{"ingress", "egress"}[d] }

// Directions are both.
var Directions = []Direction{Ingress, Egress}

// Policy is a policy, checked.
type Policy struct {
	Key
	// Networks are those that a MultiNetworkPolicy is for.
	Networks []string
	Pods     labels.Selector
	// Isolates and Rules are indexed by Direction.
	Isolates [2]bool
	Rules    [2][]Rule
}

// Rule allows some traffic with some peers.
type Rule struct {
	Anyone bool
	Peers  []Peer
	Ports  []Ports // none: all traffic
}

// Peer is a block of addresses, or else the pods that both selectors select.
type Peer struct {
	Block *Block
	Pods  labels.Selector
	// Namespaces is nil when only the policy's own is meant.
	Namespaces labels.Selector
}

// Ports are numbers, or a name.
type Ports struct {
	Name string
	Range
}

// Range is numbers of one protocol.
type Range struct {
	Protocol    string // tcp, udp, sctp
	First, Last uint16 // First 0: all numbers
}

// Block is a range of addresses without some parts of it.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}
