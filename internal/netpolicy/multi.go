package netpolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// ForAnnotation lists the network attachment definitions that a MultiNetworkPolicy is for: names of its own namespace, or
// "namespace/name", with commas between them.
const ForAnnotation = "k8s.v1.cni.cncf.io/policy-for"

// For are the definitions that a policy is for, as "namespace/name".
func For(namespace string, annotations map[string]string) []string {
	var out []string
	for _, part := range strings.Split(annotations[ForAnnotation], ",") {
		switch part = strings.TrimSpace(part); {
		case part == "":
		case strings.Contains(part, "/"):
			out = append(out, part)
		default:
			out = append(out, namespace+"/"+part)
		}
	}
	return out
}

// PlainSpec is a policy in the words of a NetworkPolicy, of whose specification its own is a copy.
func PlainSpec(p *multiv1beta1.MultiNetworkPolicy) (spec networkingv1.NetworkPolicySpec, err error) {
	text, err := json.Marshal(p.Spec)
	if err != nil {
		return spec, err
	}
	return spec, json.Unmarshal(text, &spec)
}

// ErrNowhere says that a policy names no network.
var ErrNowhere = errors.New("it is in force nowhere: name the network attachment definitions that it is for in the annotation " + ForAnnotation)

// ErrMissing says that a policy is for something that is not there yet.
var ErrMissing = errors.New("the policy comes into force with it")

// Missing says that the definition is not there of a network that a policy is for.
func Missing(definition string) error {
	return fmt.Errorf("network attachment definition %s is not there; %w", definition, ErrMissing)
}

// ErrSelectors says that a policy selects peers where nobody knows their addresses. Its other rules are in force.
var ErrSelectors = errors.New("peers there can be given by ipBlock only")

// CheckNetwork tells why a MultiNetworkPolicy is not, or not wholly, in force on the network of a definition.
func CheckNetwork(definition string, n netconf.Network, spec networkingv1.NetworkPolicySpec) error {
	switch {
	case n.IsDefault() || n.Role == podnetworks.Primary:
		return fmt.Errorf("%s is a primary network, where a MultiNetworkPolicy is not in force; write a NetworkPolicy", definition)
	case len(n.Subnets) == 0 && selects(spec):
		return fmt.Errorf("%s gives no addresses, so nobody knows whose an address is and %w; "+
			"write the peers as ipBlock, or give the network subnets", definition, ErrSelectors)
	}
	return nil
}

// selects tells whether a policy gives peers by selectors.
func selects(spec networkingv1.NetworkPolicySpec) bool {
	by := func(p networkingv1.NetworkPolicyPeer) bool { return p.PodSelector != nil || p.NamespaceSelector != nil }
	return slices.ContainsFunc(spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return slices.ContainsFunc(r.From, by) }) ||
		slices.ContainsFunc(spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return slices.ContainsFunc(r.To, by) })
}
