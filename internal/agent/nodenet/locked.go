package nodenet

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/podnetworks"
)

// atFilter is the place of a chain that only refuses.
const atFilter = "0"

// tenantNamespaces are those whose services are on networks of their own.
func tenantNamespaces(namespaces []corev1.Namespace) map[string]bool {
	out := map[string]bool{}
	for i := range namespaces {
		if _, ok := namespaces[i].Labels[ovnv1.PrimaryNamespaceLabel]; ok {
			out[namespaces[i].Name] = true
		}
	}
	return out
}

// lockedLegs are the default-network addresses of this node's pods whose primary network is a tenant's.
func lockedLegs(pods []corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for i := range pods {
		out = append(out, lockedLeg(&pods[i])...)
	}
	return out
}

func lockedLeg(pod *corev1.Pod) []netip.Addr {
	if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	networks, err := podnetworks.ParsePod(pod.Annotations)
	leg := networks[podnetworks.Default]
	if err != nil || leg.Role != podnetworks.InfrastructureLocal {
		return nil
	}
	var out []netip.Addr
	for _, ip := range leg.IPs {
		out = append(out, ip.Addr())
	}
	return out
}

func sameLeg(a, b *corev1.Pod) bool { return slices.Equal(lockedLeg(a), lockedLeg(b)) }

// addLocked keeps everything but the node's own services away from locked legs. The overlay lets in what has the node's address
// there, and the node gives that address to all that it sends; so who may send is decided here: root's processes, because
// the kubelet is one, and nothing that is only passing through.
func (r Ruleset) addLocked(legs []netip.Addr) {
	var output, forward []string
	for _, f := range families {
		set := Map{Type: f.addrType, Elements: map[string]string{}}
		for _, leg := range legs {
			if leg.Is4() == f.is4 {
				set.Elements[leg.String()] = ""
			}
		}
		r.Maps["locked"+f.suffix] = set
		toLocked := fmt.Sprintf("oifname %q %s daddr @locked%s ", ManagementDevice, f.ip, f.suffix)
		output = append(output, toLocked+"meta skuid != 0 reject")
		forward = append(forward, toLocked+"reject")
	}
	r.Chains["locked-output"] = Chain{Hook: knftables.OutputHook, Priority: atFilter, Filter: true, Rules: output}
	r.Chains["locked-forward"] = Chain{Hook: knftables.ForwardHook, Priority: atFilter, Filter: true, Rules: forward}
}
