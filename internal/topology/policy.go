package topology

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
)

// Priorities of policies' rules, below those that hold whatever a policy says.
const (
	aclPolicyAllow = 1001
	aclPolicyDrop  = 1000
)

// PolicyGroup is the ports of one network that something selects. It is a port group, so OVN itself keeps the addresses of its ports
// ("$NAME_ip4", "$NAME_ip6"): who joins it is a peer of all policies that speak of it, without a rule being touched.
type PolicyGroup struct {
	Network string // "" is the default one
	Selects string // what it selects, the same text for the same selection
}

// Name of the port group. Names of networks and selectors may hold what those of port groups may not.
func (g PolicyGroup) Name() string {
	sum := sha256.Sum256([]byte(g.Network + "\x00" + g.Selects))
	return "policy_" + hex.EncodeToString(sum[:10])
}

func (g PolicyGroup) ref() nb.Ref { return nb.Ref{Table: nb.PortGroupTable, Key: g.Name()} }

// isolated are the ports of a network that some policy of a direction selects.
func isolated(network string, d netpolicy.Direction) PolicyGroup {
	return PolicyGroup{Network: network, Selects: "isolated for " + d.String()}
}

// PolicyGroupRows are a group without its members.
func PolicyGroupRows(g PolicyGroup) []nb.Row {
	return []nb.Row{nb.NewRow(nb.PortGroupTable, g.Name(), &nb.PortGroup{
		Name: g.Name(), ExternalIDs: map[string]string{"k8s.ovn.org/network": NetworkText(g.Network), "selects": g.Selects},
	})}
}

// NetworkText is what rows and their owners call a network. The default one, "", has to be called something too.
func NetworkText(name string) string {
	if name == "" {
		return "(default)" // no network beside it can be called so
	}
	return name
}

// PolicyMember puts a port into the groups of its network that it belongs to, and among those that only reach, or are reached by, what
// a policy allows.
func PolicyMember(port, network string, groups []PolicyGroup, directions []netpolicy.Direction) nb.Row {
	row := nb.Membership(nb.Ref{Table: nb.LogicalSwitchPortTable, Key: port})
	for _, d := range directions {
		groups = append(slices.Clone(groups), isolated(network, d))
	}
	for _, g := range groups {
		row = row.In(g.ref(), "ports")
	}
	return row
}

// PolicyRule allows traffic of the ports of Target with peers. Names are resolved: a named port is a rule for those who call that
// number so.
type PolicyRule struct {
	Name   string // unique in its direction, and the same whatever other rules there are
	Target PolicyGroup
	// Anyone are all peers. Else the peers are those of the groups and blocks.
	Anyone bool
	Groups []PolicyGroup
	Blocks []netpolicy.Block
	Ports  []netpolicy.Range // none: whatever the protocol
}

// Policy is a policy as far as one network is concerned.
type Policy struct {
	Kind      string // NetworkPolicy or MultiNetworkPolicy
	Namespace string
	Name      string
	Network   string
	Ingress   []PolicyRule
	Egress    []PolicyRule
}

// PolicyRows are what a policy allows: rules on the port groups of its targets. That everything else is refused is IsolationRows'.
func PolicyRows(p Policy) []nb.Row {
	return slices.Concat(p.acls(netpolicy.Ingress, p.Ingress), p.acls(netpolicy.Egress, p.Egress))
}

func (p Policy) acls(d netpolicy.Direction, rules []PolicyRule) []nb.Row {
	var rows []nb.Row
	for _, rule := range rules {
		peers, some := rule.peers(d)
		if !some {
			continue
		}
		for _, traffic := range rule.traffic() {
			key := fmt.Sprintf("%s/%s/%s/%s/%s/%s/%s", p.Kind, p.Namespace, p.Name, NetworkText(p.Network), d, rule.Name, traffic.name)
			rows = append(rows, policyACL(rule.Target, d, key, nb.ACLActionAllowRelated, conjunction(peers, traffic.match)))
		}
	}
	return rows
}

// policyACL is a rule on a group. What leaves a port is looked at after its service has become an endpoint: policies speak of pods.
func policyACL(on PolicyGroup, d netpolicy.Direction, key string, action nb.ACLAction, match string) nb.Row {
	acl := &nb.ACL{Direction: nb.ACLDirectionToLport, Priority: aclPolicyAllow, Action: action, Match: "outport == @" + on.Name() + " && " + match}
	if d == netpolicy.Egress {
		acl.Direction, acl.Match = nb.ACLDirectionFromLport, "inport == @"+on.Name()+" && "+match
		acl.Options = map[string]string{"apply-after-lb": "true"}
	}
	if action == nb.ACLActionDrop {
		acl.Priority = aclPolicyDrop
	}
	return nb.NewRow(nb.ACLTable, key, acl).In(on.ref(), "acls")
}

// What every port needs to have addresses and neighbours at all. ARP is not touched: only IP is refused. OVN lets neighbour discovery
// pass by itself since 23.03.1, its DHCP responders come after the rules for what leaves a port.
const (
	neighbourDiscovery = "(nd || nd_rs || nd_ra || mldv1 || mldv2)"
	dhcpAnswers        = "((udp.src == 67 && udp.dst == 68) || (udp.src == 547 && udp.dst == 546))"
	dhcpQuestions      = "((udp.src == 68 && udp.dst == 67) || (udp.src == 546 && udp.dst == 547))"
)

// Isolation is what policies on a network are made on.
type Isolation struct {
	Network string
	// Services says that the network has load balancers. A port then meets itself under an address that nobody else can have.
	Services bool
	// Nodes are the addresses by which each node reaches its own ports; the default network allows those whatever policies say.
	Nodes []netip.Addr
}

// IsolationRows are what holds for the isolated ports of a network: nothing goes but what a policy allows, what keeps a port on its
// network, and what comes from its own node.
func IsolationRows(i Isolation) []nb.Row {
	var rows []nb.Row
	for _, d := range netpolicy.Directions {
		group := isolated(i.Network, d)
		acl := func(what string, action nb.ACLAction, match string) {
			rows = append(rows, policyACL(group, d, "isolation/"+NetworkText(i.Network)+"/"+d.String()+"/"+what, action, match))
		}
		rows = append(rows, PolicyGroupRows(group)...)
		acl("drop", nb.ACLActionDrop, "ip")
		acl("neighbours", nb.ACLActionAllow, neighbourDiscovery)
		if d == netpolicy.Egress {
			acl("dhcp", nb.ACLActionAllow, dhcpQuestions)
			continue
		}
		acl("dhcp", nb.ACLActionAllow, dhcpAnswers)
		if i.Services {
			acl("itself", nb.ACLActionAllowRelated, sources(addresses(strings.Fields(hairpinSources))))
		}
		if len(i.Nodes) > 0 {
			acl("node", nb.ACLActionAllowRelated, sources(i.Nodes))
		}
	}
	return rows
}

func addresses(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// sources matches packets from any of some addresses.
func sources(list []netip.Addr) string {
	var peers peerSet
	for _, a := range list {
		peers.addPrefix(netip.PrefixFrom(a, a.BitLen()))
	}
	return peers.match("src")
}
