package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"patchbay/internal/netpolicy"
)

// peerSet is a set of peers in OVN's language, by family: address sets and ranges.
type peerSet struct{ four, six []string }

func (s *peerSet) addGroup(g PolicyGroup) {
	s.four = append(s.four, "$"+g.Name()+"_ip4")
	s.six = append(s.six, "$"+g.Name()+"_ip6")
}

func (s *peerSet) addPrefix(p netip.Prefix) {
	text := p.Masked().String()
	if p.IsSingleIP() {
		text = p.Addr().String()
	}
	if p.Addr().Is4() {
		s.four = append(s.four, text)
	} else {
		s.six = append(s.six, text)
	}
}

// match is true for packets whose source or destination ("src", "dst") is in the set; "" when nothing is.
func (s *peerSet) match(field string) string {
	var parts []string
	for _, f := range []struct {
		name  string
		all   string
		items []string
	}{{"ip4", "0.0.0.0/0", s.four}, {"ip6", "::/0", s.six}} {
		switch {
		case len(f.items) == 0:
		case slices.Contains(f.items, f.all):
			parts = append(parts, f.name)
		default:
			slices.Sort(f.items)
			parts = append(parts, fmt.Sprintf("%s.%s == {%s}", f.name, field, strings.Join(slices.Compact(f.items), ", ")))
		}
	}
	return disjunction(parts)
}

// disjunction joins alternatives. OVN ignores an expression that mixes && and || without parentheses, and says so in a log only.
func disjunction(parts []string) string {
	if len(parts) < 2 {
		return strings.Join(parts, "")
	}
	return "(" + strings.Join(parts, " || ") + ")"
}

func conjunction(parts ...string) string {
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
	return strings.Join(parts, " && ")
}

// peers matches whom a rule speaks of; some is false when that is nobody at all.
func (r PolicyRule) peers(d netpolicy.Direction) (match string, some bool) {
	if r.Anyone {
		return "", true
	}
	var set peerSet
	for _, g := range r.Groups {
		set.addGroup(g)
	}
	for _, b := range r.Blocks {
		for _, p := range b.Ranges() {
			set.addPrefix(p)
		}
	}
	match = set.match([...]string{netpolicy.Ingress: "src", netpolicy.Egress: "dst"}[d])
	return match, match != ""
}

// protocolMatch is one rule's traffic of one protocol.
type protocolMatch struct{ name, match string }

// traffic is what a rule allows, by protocol: a match may speak of ports of one protocol only.
func (r PolicyRule) traffic() []protocolMatch {
	if len(r.Ports) == 0 {
		return []protocolMatch{{"ip", "ip"}}
	}
	var out []protocolMatch
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		var ports []netpolicy.Range
		for _, p := range r.Ports {
			if p.Protocol == protocol {
				ports = append(ports, p)
			}
		}
		if len(ports) > 0 {
			out = append(out, protocolMatch{protocol, conjunction(protocol, numbers(protocol, ports))})
		}
	}
	return out
}

// numbers matches any of some ports; "" is all of them.
func numbers(protocol string, ports []netpolicy.Range) string {
	var single, parts []string
	for _, p := range ports {
		switch {
		case p.First == 0:
			return ""
		case p.First == p.Last:
			single = append(single, fmt.Sprint(p.First))
		default:
			parts = append(parts, fmt.Sprintf("%d <= %s.dst <= %d", p.First, protocol, p.Last))
		}
	}
	if len(single) > 0 {
		slices.Sort(single)
		parts = append([]string{fmt.Sprintf("%s.dst == {%s}", protocol, strings.Join(slices.Compact(single), ", "))}, parts...)
	}
	return disjunction(parts)
}
