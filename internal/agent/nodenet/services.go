package nodenet

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// service is a Service that can be reached from outside the overlay or from the node itself: plain and checked.
type service struct {
	key        types.NamespacedName
	clusterIPs []netip.Addr
	addresses  []netip.Addr // external IPs, open to everyone
	balancers  []netip.Addr // addresses of load balancers, open to sources
	sources    []netip.Prefix
	local      bool // externalTrafficPolicy Local
	affinity   bool // session affinity by client address
	tenant     bool // on the network of its namespace
	healthPort uint16
	ports      []servicePort
}

type servicePort struct {
	protocol  string // tcp, udp, sctp
	port      uint16
	nodePort  uint16 // 0: none
	endpoints []endpoint
}

// endpoint is one that may get traffic.
type endpoint struct {
	address netip.AddrPort
	here    bool // on this node
	ready   bool // or else still serving while it terminates
}

// readServices converts API objects. Services without a cluster IP have nothing on the node.
func readServices(node string, services []corev1.Service, slicesOf []discoveryv1.EndpointSlice, tenants map[string]bool) []service {
	byService := map[types.NamespacedName][]discoveryv1.EndpointSlice{}
	for _, s := range slicesOf {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := types.NamespacedName{Namespace: s.Namespace, Name: name}
			byService[key] = append(byService[key], s)
		}
	}
	var out []service
	for i := range services {
		key := types.NamespacedName{Namespace: services[i].Namespace, Name: services[i].Name}
		if s, ok := readService(node, &services[i], byService[key]); ok {
			s.tenant = tenants[key.Namespace]
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b service) int { return cmp.Compare(a.key.String(), b.key.String()) })
	return out
}

func readService(node string, s *corev1.Service, endpoints []discoveryv1.EndpointSlice) (service, bool) {
	out := service{
		key:        types.NamespacedName{Namespace: s.Namespace, Name: s.Name},
		clusterIPs: parseAddrs(s.Spec.ClusterIPs),
		addresses:  parseAddrs(s.Spec.ExternalIPs),
		local:      s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		affinity:   s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName || len(out.clusterIPs) == 0 {
		return service{}, false
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		out.balancers = balancerAddresses(s)
		out.sources = parsePrefixes(s.Spec.LoadBalancerSourceRanges)
		if out.local {
			out.healthPort = uint16(s.Spec.HealthCheckNodePort)
		}
	}
	for _, p := range s.Spec.Ports {
		out.ports = append(out.ports, servicePort{
			protocol: strings.ToLower(string(cmp.Or(p.Protocol, corev1.ProtocolTCP))),
			port:     uint16(p.Port), nodePort: uint16(p.NodePort),
			endpoints: readEndpoints(node, p, endpoints),
		})
	}
	return out, true
}

// balancerAddresses leaves out addresses of mode Proxy: traffic to them must pass through the load balancer.
func balancerAddresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			out = append(out, parseAddrs([]string{ingress.IP})...)
		}
	}
	return out
}

// readEndpoints returns those of one port that may get traffic in some circumstances.
func readEndpoints(node string, port corev1.ServicePort, slicesOf []discoveryv1.EndpointSlice) []endpoint {
	var out []endpoint
	for _, s := range slicesOf {
		number, ok := portOf(s, port)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			ready := isSet(e.Conditions.Ready, true)
			if !ready && !(isSet(e.Conditions.Serving, false) && isSet(e.Conditions.Terminating, false)) {
				continue
			}
			for _, address := range parseAddrs(e.Addresses) {
				out = append(out, endpoint{netip.AddrPortFrom(address, number), e.NodeName != nil && *e.NodeName == node, ready})
			}
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int { return a.address.Compare(b.address) })
	return slices.CompactFunc(out, func(a, b endpoint) bool { return a.address == b.address })
}

// choose returns the endpoints that get traffic: of those that are wanted the ready ones, or when there are none those that
// still serve while they terminate.
func (p servicePort) choose(wanted func(endpoint) bool) []netip.AddrPort {
	var ready, terminating []netip.AddrPort
	for _, e := range p.endpoints {
		switch {
		case !wanted(e):
		case e.ready:
			ready = append(ready, e.address)
		default:
			terminating = append(terminating, e.address)
		}
	}
	if len(ready) == 0 {
		return terminating
	}
	return ready
}

// portOf finds the number that a service port has in a slice: ports correspond by name.
func portOf(s discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	for _, p := range s.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if p.Port != nil && name == port.Name && protocol == cmp.Or(port.Protocol, corev1.ProtocolTCP) {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func isSet(condition *bool, unset bool) bool {
	if condition == nil {
		return unset
	}
	return *condition
}

// parseAddrs drops what is no address ("None", names): the API server checked the rest.
func parseAddrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func parsePrefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}
