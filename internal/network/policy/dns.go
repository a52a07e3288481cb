package policy

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"patchbay/internal/netpolicy"
	"patchbay/internal/topology"
)

// The cluster's DNS servers run beside the control plane. For policies they are pods with these labels, as they are in most clusters,
// so that the customary rule that allows DNS does so here. The same servers answer on every network that has services.
var (
	dnsNamespace = "kube-system"
	dnsLabels    = labels.Set{"k8s-app": "kube-dns"}
	dnsPorts     = []NamedPort{{"dns", "udp", 53}, {"dns-tcp", "tcp", 53}}
)

// dnsRule is what a rule allows of the DNS servers' ports, when one of its peers would select their pods.
func (e *Enforcer) dnsRule(n *network, own string, d netpolicy.Direction, rule netpolicy.Rule) (out topology.PolicyRule, some bool) {
	selected := slices.ContainsFunc(rule.Peers, func(p netpolicy.Peer) bool {
		return p.Block == nil && newGroup(n.Name, own, p.Namespaces, p.Pods).has(Port{Namespace: dnsNamespace, Labels: dnsLabels}, e.namespaces[dnsNamespace])
	})
	if d != netpolicy.Egress || !n.Services || !selected {
		return out, false
	}
	out.Name = "-dns"
	for _, server := range dnsPorts {
		asked := func(p netpolicy.Ports) bool {
			within := p.Name == "" && (p.First == 0 || p.First <= server.Number && server.Number <= p.Last)
			return p.Protocol == server.Protocol && (within || p.Name == server.Name)
		}
		if len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, asked) {
			out.Ports = append(out.Ports, netpolicy.Range{Protocol: server.Protocol, First: server.Number, Last: server.Number})
		}
	}
	for _, a := range e.dns {
		out.Blocks = append(out.Blocks, netpolicy.Block{CIDR: netip.PrefixFrom(a, a.BitLen())})
	}
	return out, len(out.Ports) > 0 && len(out.Blocks) > 0
}
