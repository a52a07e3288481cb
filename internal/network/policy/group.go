package policy

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"patchbay/internal/netpolicy"
	"patchbay/internal/topology"
)

// group is a selection of a network's ports that policies speak of.
type group struct {
	topology.PolicyGroup
	namespace  string          // of its pods; "" when namespaces says
	namespaces labels.Selector // nil when namespace says
	pods       labels.Selector
	named      *NamedPort // whose number its pods call so; nil: all pods
	users      int        // policies that speak of it
}

// newGroup is the pods of one namespace, or of all that a selector selects.
func newGroup(network, namespace string, namespaces, pods labels.Selector) *group {
	g := &group{namespace: namespace, namespaces: namespaces, pods: pods}
	of := "namespace " + namespace
	if namespaces != nil {
		g.namespace, of = "", selected("namespaces", namespaces)
	}
	g.PolicyGroup = topology.PolicyGroup{Network: network, Selects: selected("pods", pods) + " of " + of}
	return g
}

func selected(what string, s labels.Selector) string {
	if s.Empty() {
		return "all " + what
	}
	return fmt.Sprintf("%s (%s)", what, s)
}

// calling is those of a group that call a number by a name.
func (g *group) calling(n NamedPort) *group {
	out := *g
	out.named = &n
	out.Selects = fmt.Sprintf("%s/%s=%d in %s", n.Protocol, n.Name, n.Number, g.Selects)
	return &out
}

func (g *group) has(p Port, namespace labels.Set) bool {
	if g.namespaces == nil && p.Namespace != g.namespace || g.namespaces != nil && !g.namespaces.Matches(namespace) {
		return false
	}
	return g.pods.Matches(p.Labels) && (g.named == nil || slices.Contains(p.Named, *g.named))
}

// resolution is a policy as a network's rules, with the groups that they speak of.
type resolution struct {
	policy topology.Policy
	groups map[string]*group // by what they select
	names  map[name]bool     // that it uses
}

// name is a port's name with its protocol.
type name struct{ protocol, name string }

func (r *resolution) use(g *group) topology.PolicyGroup {
	r.groups[g.Selects] = g
	return g.PolicyGroup
}

// resolve makes a policy the rules of one network.
func (e *Enforcer) resolve(n *network, p netpolicy.Policy) *resolution {
	r := &resolution{
		policy: topology.Policy{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Network: n.Name},
		groups: map[string]*group{}, names: map[name]bool{},
	}
	target := newGroup(n.Name, p.Namespace, nil, p.Pods)
	for _, d := range netpolicy.Directions {
		isolates, rules := p.Isolates[d], p.Rules[d]
		if !isolates {
			continue // rules of a direction that policyTypes leaves out mean nothing
		}
		var out []topology.PolicyRule
		for i, rule := range rules {
			for _, resolved := range e.resolveRule(r, n, target, d, rule) {
				resolved.Name = fmt.Sprint(i) + resolved.Name
				out = append(out, resolved)
			}
		}
		if d == netpolicy.Ingress {
			r.policy.Ingress = out
		} else {
			r.policy.Egress = out
		}
	}
	return r
}

// resolveRule splits a rule: its numbers in one, and one for every number that somebody gives a name that the rule speaks of. What a
// name means, the pod says that is connected to.
func (e *Enforcer) resolveRule(r *resolution, n *network, target *group, d netpolicy.Direction, rule netpolicy.Rule) []topology.PolicyRule {
	peers := peersOf(n, target.namespace, rule)
	base := topology.PolicyRule{Anyone: rule.Anyone}
	for _, p := range rule.Peers {
		if p.Block != nil {
			base.Blocks = append(base.Blocks, *p.Block)
		}
	}
	var out []topology.PolicyRule
	plain := base
	for _, ports := range rule.Ports {
		if ports.Name == "" {
			plain.Ports = append(plain.Ports, ports.Range)
			continue
		}
		r.names[name{ports.Protocol, ports.Name}] = true
		for _, number := range n.numbers(ports) {
			out = append(out, namedRule(r, n, target, d, base, peers, number))
		}
	}
	if len(plain.Ports) > 0 || len(rule.Ports) == 0 {
		plain.Target = r.use(target)
		for _, g := range peers {
			plain.Groups = append(plain.Groups, r.use(g))
		}
		out = append([]topology.PolicyRule{plain}, out...)
	}
	if dns, some := e.dnsRule(n, target.namespace, d, rule); some {
		dns.Target = r.use(target)
		out = append(out, dns)
	}
	return out
}

// peersOf are the groups that a rule's selectors select. Without addresses nobody can be told by them.
func peersOf(n *network, namespace string, rule netpolicy.Rule) []*group {
	var out []*group
	for _, p := range rule.Peers {
		if p.Block == nil && n.Addresses {
			out = append(out, newGroup(n.Name, namespace, p.Namespaces, p.Pods))
		}
	}
	return out
}

func namedRule(r *resolution, n *network, target *group, d netpolicy.Direction, base topology.PolicyRule, peers []*group, number NamedPort) topology.PolicyRule {
	rule := base
	rule.Name = fmt.Sprintf("-%s-%d", number.Name, number.Number)
	rule.Ports = []netpolicy.Range{{Protocol: number.Protocol, First: number.Number, Last: number.Number}}
	if d == netpolicy.Ingress {
		rule.Target = r.use(target.calling(number))
		for _, g := range peers {
			rule.Groups = append(rule.Groups, r.use(g))
		}
		return rule
	}
	// Of a block nobody knows what it calls its ports.
	rule.Target, rule.Blocks, rule.Anyone = r.use(target), nil, false
	if base.Anyone {
		peers = []*group{newGroup(n.Name, "", labels.Everything(), labels.Everything())}
	}
	for _, g := range peers {
		rule.Groups = append(rule.Groups, r.use(g.calling(number)))
	}
	return rule
}
