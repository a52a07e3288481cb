package policy

import (
	"slices"
	"strings"

	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/topology"
)

// build makes a policy's rules on a network, and the memberships that follow.
func (e *Enforcer) build(n *network, p netpolicy.Policy) {
	before, now := n.policies[p.Key], e.resolve(n, p)
	if len(n.policies) == 0 {
		e.isolate(n)
	}
	n.policies[p.Key] = now
	e.out[policyOwner(n, p.Key)] = topology.PolicyRows(now.policy)
	touched := map[string]bool{p.Namespace: true}
	for _, g := range now.groups {
		e.join(n, g, touched)
	}
	if before != nil {
		for _, g := range before.groups {
			e.leave(n, g, touched)
		}
	}
	e.refreshTouched(n, touched)
}

// drop takes a policy from a network.
func (e *Enforcer) drop(n *network, key netpolicy.Key) {
	before := n.policies[key]
	delete(n.policies, key)
	e.out[policyOwner(n, key)] = nil
	touched := map[string]bool{key.Namespace: true}
	for _, g := range before.groups {
		e.leave(n, g, touched)
	}
	e.refreshTouched(n, touched)
	if len(n.policies) == 0 {
		e.out[isolationOwner(n)] = nil
	}
}

// rebuild resolves policies of a network again.
func (e *Enforcer) rebuild(n *network, affected func(*resolution) bool) {
	for key, r := range n.policies {
		if affected(r) {
			e.build(n, e.policies[key.Namespace][key])
		}
	}
}

func (e *Enforcer) isolate(n *network) {
	e.out[isolationOwner(n)] = topology.IsolationRows(topology.Isolation{Network: n.Name, Services: n.Services, Nodes: n.Nodes})
}

// join lets a policy use a group, which exists from then on. touched gathers the namespaces of its ports, "" for all.
func (e *Enforcer) join(n *network, g *group, touched map[string]bool) {
	known := n.groups[g.namespace][g.Selects]
	if known != nil {
		known.users++
		return
	}
	if n.groups[g.namespace] == nil {
		n.groups[g.namespace] = map[string]*group{}
	}
	own := *g
	own.users = 1
	n.groups[g.namespace][g.Selects] = &own
	e.out[groupOwner(g)] = topology.PolicyGroupRows(g.PolicyGroup)
	touched[g.namespace] = true
}

func (e *Enforcer) leave(n *network, g *group, touched map[string]bool) {
	known := n.groups[g.namespace][g.Selects]
	if known.users--; known.users > 0 {
		return
	}
	delete(n.groups[g.namespace], g.Selects)
	e.out[groupOwner(g)] = nil
	touched[g.namespace] = true
}

func groupOwner(g *group) string { return "policy-group/" + g.Name() }

func (e *Enforcer) refreshTouched(n *network, touched map[string]bool) {
	for namespace := range n.ports {
		if touched[""] || touched[namespace] {
			e.refresh(n, namespace)
		}
	}
}

// refresh looks at the memberships of all ports of a namespace.
func (e *Enforcer) refresh(n *network, namespace string) {
	for _, m := range n.ports[namespace] {
		e.refreshPort(n, m)
	}
}

// refreshPort says a port's memberships when they have changed.
func (e *Enforcer) refreshPort(n *network, m *member) {
	var groups []topology.PolicyGroup
	for _, scope := range []string{m.Namespace, ""} {
		for _, g := range n.groups[scope] {
			if g.has(m.Port, e.namespaces[m.Namespace]) {
				groups = append(groups, g.PolicyGroup)
			}
		}
	}
	slices.SortFunc(groups, func(a, b topology.PolicyGroup) int { return strings.Compare(a.Selects, b.Selects) })
	isolated := e.isolated(n, m.Port)
	row := summary(groups, isolated)
	if row == m.row {
		return
	}
	m.row = row
	if row == "" {
		e.out[portOwner(m.Name)] = nil
		return
	}
	e.out[portOwner(m.Name)] = []nb.Row{topology.PolicyMember(m.Name, n.Name, groups, isolated)}
}

// summary is what a port is in, in one text.
func summary(groups []topology.PolicyGroup, isolated []netpolicy.Direction) string {
	var parts []string
	for _, g := range groups {
		parts = append(parts, g.Selects)
	}
	for _, d := range isolated {
		parts = append(parts, d.String())
	}
	return strings.Join(parts, "\n")
}

// isolated are the directions in which some policy selects a port.
func (e *Enforcer) isolated(n *network, p Port) []netpolicy.Direction {
	var out []netpolicy.Direction
	for _, d := range netpolicy.Directions {
		for key := range e.policies[p.Namespace] {
			policy := e.policies[p.Namespace][key]
			if n.policies[key] != nil && policy.Isolates[d] && policy.Pods.Matches(p.Labels) {
				out = append(out, d)
				break
			}
		}
	}
	return out
}
