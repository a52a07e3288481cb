package nodenet

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

func testNode() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Annotations: map[string]string{
		podnetworks.NodeAnnotation: `{"default":["10.128.0.0/23","fd00:10:128::/64"]}`,
	}}}
}

func testPlan(t *testing.T) Plan {
	t.Helper()
	p, err := NewPlan(settings.Default(), testNode())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serviceCase is one Service with its EndpointSlices.
type serviceCase struct {
	service corev1.Service
	slices  []discoveryv1.EndpointSlice
}

// newService is a ClusterIP service red/web with port 80/TCP; edit changes it.
func newService(edit func(*corev1.Service)) corev1.Service {
	s := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.1.2", ClusterIPs: []string{"10.96.1.2", "fd00:10:96::12"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	if edit != nil {
		edit(&s)
	}
	return s
}

// newSlice is a slice of red/web with port 8080/TCP.
func newSlice(endpoints ...discoveryv1.Endpoint) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Endpoints:  endpoints,
		Ports:      []discoveryv1.EndpointPort{{Name: knftables.PtrTo("http"), Port: knftables.PtrTo(int32(8080)), Protocol: knftables.PtrTo(corev1.ProtocolTCP)}},
	}
}

func at(node, address string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}, NodeName: &node}
}

func terminating(e discoveryv1.Endpoint) discoveryv1.Endpoint {
	no, yes := false, true
	e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	return e
}

func nodePort(local bool) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
		if local {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
	}
}

// ofTenant puts the service on a tenant's network.
func ofTenant(edit func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) { edit(s); s.Labels = map[string]string{"tenant": "yes"} }
}

func loadBalancer(edit func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		nodePort(false)(s)
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7"}, {IP: "2001:db8::7"}}
		if edit != nil {
			edit(s)
		}
	}
}

func (c serviceCase) rules(t *testing.T) Ruleset {
	t.Helper()
	tenants := map[string]bool{"red": c.service.Labels["tenant"] != ""}
	return Rules(testPlan(t), readServices("node-1", []corev1.Service{c.service}, c.slices, tenants), nil, nil)
}

func newTable(t *testing.T) (*table, *knftables.Fake) {
	t.Helper()
	fake := knftables.NewFake(knftables.InetFamily, Table)
	return &table{nft: fake}, fake
}

func mustApply(t *testing.T, tb *table, r Ruleset) bool {
	t.Helper()
	changed, err := tb.apply(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}
