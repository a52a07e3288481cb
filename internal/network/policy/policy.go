// Package policy knows which ports every NetworkPolicy and MultiNetworkPolicy selects, and keeps the rows that follow up to date: a
// port that comes, changes or goes changes its own memberships, a policy its own rules and the memberships of those it speaks of. It
// is pure bookkeeping in memory; whoever uses it feeds it namespaces, networks, ports and policies. It must not talk to an API server
// or a database.
//
//	selector -> port group (peers by its address sets) <- membership <- port
//	policy   -> ACLs on the port group of its targets
//	network  -> two port groups of isolated ports, which lose what no ACL allows
package policy

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"
)

// Port is a logical port that policies may select.
type Port struct {
	Name    string
	Network string // "" is the default one
	// Primary says that it is its pod's main connection: plain policies hold there, the others elsewhere.
	Primary   bool
	Namespace string
	Labels    labels.Set // of the pod; for a machine's own port those of its launcher
	Named     []NamedPort
}

// NamedPort is a number that a pod gives a name.
type NamedPort struct {
	Name     string
	Protocol string // tcp, udp, sctp
	Number   uint16
}

// Network is what matters of a network.
type Network struct {
	Name string // "" is the default one
	// Services says that it has load balancers, and with them the cluster's DNS.
	Services bool
	// Addresses says that it gives them. Where it does not, nobody knows whose an address is, and selectors of peers select nobody.
	Addresses bool
	// Nodes are the addresses by which nodes reach their own ports, where they are not allowed anyway.
	Nodes []netip.Addr
}
