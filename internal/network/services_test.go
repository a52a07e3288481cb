package network

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"patchbay/internal/topology"
)

func ptr[T any](v T) *T { return &v }

func slice(port discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{port}, Endpoints: endpoints}
}

func TestConvertService(t *testing.T) {
	http := corev1.ServicePort{Name: "http", Port: 80}
	onHTTP := discoveryv1.EndpointPort{Name: ptr("http"), Port: ptr(int32(8080))}
	at := func(address string, c discoveryv1.EndpointConditions) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: c, NodeName: ptr("node-1")}
	}
	endpoint := func(address string, state topology.EndpointState) topology.Endpoint {
		return topology.Endpoint{Address: netip.MustParseAddrPort(address), Node: "node-1", State: state}
	}
	vip, proxy := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy
	cases := map[string]struct {
		service corev1.Service
		slices  []discoveryv1.EndpointSlice
		want    topology.Service
	}{
		"headless": {
			service: corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, Ports: []corev1.ServicePort{http}}},
		},
		"external name": {
			service: corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}},
		},
		"ports by name": {
			service: corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.5", "fd00:10:96::5"}, Ports: []corev1.ServicePort{http, {Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}}},
			slices: []discoveryv1.EndpointSlice{
				slice(onHTTP, at("10.128.0.5", discoveryv1.EndpointConditions{})),
				slice(onHTTP, at("fd00:10:128::5", discoveryv1.EndpointConditions{})),
				slice(discoveryv1.EndpointPort{Name: ptr("dns"), Port: ptr(int32(5353)), Protocol: ptr(corev1.ProtocolUDP)}, at("10.128.0.6", discoveryv1.EndpointConditions{})),
				slice(discoveryv1.EndpointPort{Name: ptr("http"), Port: ptr(int32(1)), Protocol: ptr(corev1.ProtocolSCTP)}, at("10.128.0.7", discoveryv1.EndpointConditions{})),
			},
			want: topology.Service{
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("fd00:10:96::5")},
				Ports: []topology.ServicePort{
					{Protocol: "tcp", Port: 80, Endpoints: []topology.Endpoint{endpoint("10.128.0.5:8080", topology.Ready), endpoint("[fd00:10:128::5]:8080", topology.Ready)}},
					{Protocol: "udp", Port: 53, Endpoints: []topology.Endpoint{endpoint("10.128.0.6:5353", topology.Ready)}},
				},
			},
		},
		"conditions": {
			service: corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.5"}, Ports: []corev1.ServicePort{http}, PublishNotReadyAddresses: true}},
			slices: []discoveryv1.EndpointSlice{slice(onHTTP,
				at("10.0.0.1", discoveryv1.EndpointConditions{Ready: ptr(true)}),
				at("10.0.0.2", discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}),
				at("10.0.0.3", discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}),
				at("10.0.0.4", discoveryv1.EndpointConditions{Ready: ptr(false)}))},
			want: topology.Service{
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, AnyReadiness: true,
				Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: []topology.Endpoint{
					endpoint("10.0.0.1:8080", topology.Ready), endpoint("10.0.0.2:8080", topology.ServingTerminating),
					endpoint("10.0.0.3:8080", topology.NotReady), endpoint("10.0.0.4:8080", topology.NotReady),
				}}},
			},
		},
		"affinity, policy and outside addresses": {
			service: corev1.Service{
				Spec: corev1.ServiceSpec{
					Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.5"}, ExternalIPs: []string{"192.0.2.1"},
					SessionAffinity: corev1.ServiceAffinityClientIP, InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyLocal),
					SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(60))}},
				},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
					{IP: "192.0.2.2"}, {IP: "192.0.2.3", IPMode: &vip}, {IP: "192.0.2.4", IPMode: &proxy}, {Hostname: "lb.example.org"},
				}}},
			},
			want: topology.Service{
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, InternalLocal: true, Affinity: true,
				ExternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")},
			},
		},
		"source ranges are the node's to check": {
			service: corev1.Service{
				Spec:   corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.5"}, LoadBalancerSourceRanges: []string{"192.0.2.0/24"}, SessionAffinity: corev1.ServiceAffinityClientIP},
				Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}}}},
			},
			want: topology.Service{ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, Affinity: true},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.service.ObjectMeta = metav1.ObjectMeta{Namespace: "default", Name: "web"}
			c.want.Namespace, c.want.Name = "default", "web"
			same := cmp.Options{
				cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			}
			if diff := cmp.Diff(c.want, convertService(&c.service, c.slices), same); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
