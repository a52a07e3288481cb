package netpolicy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Parse reads a policy; a MultiNetworkPolicy has the same shape, but the API server does not look into it. What cannot be read allows
// nothing: the error says what that is, and the rest of the policy holds.
func Parse(key Key, networks []string, spec networkingv1.NetworkPolicySpec) (Policy, error) {
	p := Policy{Key: key, Networks: networks}
	var errs []error
	p.Pods = selector(&spec.PodSelector, "podSelector", &errs)
	p.Isolates = isolates(spec)
	for i, rule := range spec.Ingress {
		at := fmt.Sprintf("ingress[%d]", i)
		p.Rules[Ingress] = append(p.Rules[Ingress], parseRule(at, ".from", rule.From, rule.Ports, &errs))
	}
	for i, rule := range spec.Egress {
		at := fmt.Sprintf("egress[%d]", i)
		p.Rules[Egress] = append(p.Rules[Egress], parseRule(at, ".to", rule.To, rule.Ports, &errs))
	}
	return p, errors.Join(errs...)
}

// isolates is what policyTypes says, or where it says nothing: ingress always, egress when there are rules for it. Empty policyTypes of
// a MultiNetworkPolicy mean the same; nothing fills them in there.
func isolates(spec networkingv1.NetworkPolicySpec) (out [2]bool) {
	out[Ingress] = len(spec.PolicyTypes) == 0 || slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	out[Egress] = len(spec.PolicyTypes) == 0 && len(spec.Egress) > 0 || slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	return out
}

// selector reads one; what is not readable selects nobody.
func selector(s *metav1.LabelSelector, at string, errs *[]error) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		*errs = append(*errs, fmt.Errorf("%s: %w", at, err))
		return labels.Nothing()
	}
	return out
}

func parseRule(at, field string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, errs *[]error) Rule {
	rule := Rule{Anyone: len(peers) == 0}
	for i, p := range peers {
		if peer, err := parsePeer(fmt.Sprintf("%s%s[%d]", at, field, i), p, errs); err != nil {
			*errs = append(*errs, err)
		} else {
			rule.Peers = append(rule.Peers, peer)
		}
	}
	for i, p := range ports {
		parsed, err := parsePorts(p)
		if err != nil {
			*errs = append(*errs, fmt.Errorf("%s.ports[%d]: %w", at, i, err))
		} else {
			rule.Ports = append(rule.Ports, parsed)
		}
	}
	if len(ports) > 0 && len(rule.Ports) == 0 {
		return Rule{} // no port at all, rather than all of them
	}
	return rule
}

func parsePeer(at string, p networkingv1.NetworkPolicyPeer, errs *[]error) (Peer, error) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		return Peer{}, fmt.Errorf("%s: give either ipBlock or selectors", at)
	case p.IPBlock != nil:
		block, err := parseBlock(p.IPBlock)
		if err != nil {
			return Peer{}, fmt.Errorf("%s.ipBlock: %w", at, err)
		}
		return Peer{Block: &block}, nil
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		return Peer{}, fmt.Errorf("%s: give ipBlock, podSelector or namespaceSelector", at)
	}
	peer := Peer{Pods: labels.Everything()}
	if p.PodSelector != nil {
		peer.Pods = selector(p.PodSelector, at+".podSelector", errs)
	}
	if p.NamespaceSelector != nil {
		peer.Namespaces = selector(p.NamespaceSelector, at+".namespaceSelector", errs)
	}
	return peer, nil
}

func parseBlock(b *networkingv1.IPBlock) (Block, error) {
	cidr, err := parsePrefix(b.CIDR)
	if err != nil {
		return Block{}, err
	}
	out := Block{CIDR: cidr}
	for _, text := range b.Except {
		except, err := parsePrefix(text)
		if err != nil {
			return Block{}, err
		}
		if except.Bits() < cidr.Bits() || !cidr.Contains(except.Addr()) {
			return Block{}, fmt.Errorf("%s is not within %s", text, b.CIDR)
		}
		out.Except = append(out.Except, except)
	}
	return out, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8 or fd00::/8", text)
	}
	return p, nil
}

func parsePorts(p networkingv1.NetworkPolicyPort) (Ports, error) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil && *p.Protocol != "" {
		protocol = *p.Protocol
	}
	out := Ports{Range: Range{Protocol: strings.ToLower(string(protocol))}}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, out.Protocol) {
		return out, fmt.Errorf("protocol %q is none of TCP, UDP and SCTP", protocol)
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return out, errors.New("endPort needs port")
	case p.Port == nil:
		return out, nil
	case p.Port.Type == intstr.String && p.EndPort != nil:
		return out, errors.New("endPort needs a numeric port")
	case p.Port.Type == intstr.String:
		out.Name = p.Port.StrVal
		return out, nil
	}
	first, last := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	if first < 1 || last > 65535 || last < first {
		return out, fmt.Errorf("ports %d to %d are not a range within 1 to 65535", first, last)
	}
	out.First, out.Last = uint16(first), uint16(last)
	return out, nil
}
