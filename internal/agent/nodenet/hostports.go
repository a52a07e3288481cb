package nodenet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// hostPort is a port of the node that leads to a pod on it.
type hostPort struct {
	pod      types.NamespacedName
	ips      []netip.Addr // of the pod
	protocol string
	hostIP   netip.Addr // invalid: every address of the node
	port     uint16     // of the node
	target   uint16     // of the pod
}

func readHostPorts(pods []corev1.Pod) []hostPort {
	var out []hostPort
	for i := range pods {
		pod := &pods[i]
		if !wantsHostPorts(pod) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		var ips []netip.Addr
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, parseAddrs([]string{ip.IP})...)
		}
		for _, p := range containerPorts(pod) {
			if p.HostPort == 0 || len(ips) == 0 {
				continue
			}
			hostIP, _ := netip.ParseAddr(p.HostIP)
			if hostIP.IsUnspecified() {
				hostIP = netip.Addr{}
			}
			out = append(out, hostPort{
				pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, ips: ips, hostIP: hostIP,
				protocol: strings.ToLower(string(cmp.Or(p.Protocol, corev1.ProtocolTCP))),
				port:     uint16(p.HostPort), target: uint16(p.ContainerPort),
			})
		}
	}
	slices.SortStableFunc(out, func(a, b hostPort) int { return cmp.Compare(a.pod.String(), b.pod.String()) })
	return out
}

// wantsHostPorts says whether a pod has host ports that the node must forward: one on the host's network has its own.
func wantsHostPorts(pod *corev1.Pod) bool {
	return !pod.Spec.HostNetwork && slices.ContainsFunc(containerPorts(pod), func(p corev1.ContainerPort) bool { return p.HostPort != 0 })
}

// containerPorts are the ports of the containers that run as long as the pod does.
func containerPorts(pod *corev1.Pod) []corev1.ContainerPort {
	var out []corev1.ContainerPort
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c.Ports...)
		}
	}
	for _, c := range pod.Spec.Containers {
		out = append(out, c.Ports...)
	}
	return out
}

// addHostPort lets clients from outside keep their address. Clients from inside the overlay may not: the pod would answer them
// directly, from an address that they did not ask.
func (r Ruleset) addHostPort(f family, h hostPort) {
	ip, ok := addrOf(f, h.ips)
	if !ok || h.hostIP.IsValid() && h.hostIP.Is4() != f.is4 {
		return
	}
	ports, localPorts, key := "ports", "local-ports", fmt.Sprintf("%s . %d", h.protocol, h.port)
	if h.hostIP.IsValid() {
		ports, localPorts, key = "ips", "local-ips", fmt.Sprintf("%s . %s . %d", h.hostIP, h.protocol, h.port)
	}
	if _, taken := r.Maps[ports+f.suffix].Elements[key]; taken {
		return
	}
	chain := fmt.Sprintf("host/%s/%s/%s/%d/%s", h.pod.Namespace, h.pod.Name, h.protocol, h.port, f.ip)
	r.Chains[chain] = Chain{Rules: []string{
		"ct mark set " + markKeepClient,
		fmt.Sprintf("meta l4proto %s dnat %s to %s", h.protocol, f.ip, netip.AddrPortFrom(ip, h.target)),
	}}
	r.Maps[localPorts+f.suffix].Elements[key] = "goto " + chain
	r.Maps[ports+f.suffix].Elements[key] = fmt.Sprintf("%s . %d", ip, h.target)
}
