package network

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/network/placement"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// setReady is what a kubelet says, or the control plane for it.
func (s *tenancy) setReady(name string, status corev1.ConditionStatus) {
	s.t.Helper()
	var n corev1.Node
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
		s.t.Fatal(err)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	if err := s.client.Status().Update(s.t.Context(), &n); err != nil {
		s.t.Fatal(err)
	}
}

// holds waits until the database has a row with all the lines.
func (s *tenancy) holds(what, row string, lines ...string) {
	s.t.Helper()
	s.until(what, func() (bool, string) {
		dump := s.o.fake.Dump()
		_, after, found := strings.Cut("\n"+dump, "\n"+row+"\n")
		section, _, _ := strings.Cut(strings.ReplaceAll(after, "\n  ", "\r  "), "\n")
		for _, line := range lines {
			found = found && strings.Contains("\r"+section+"\r", "\r  "+line+"\r")
		}
		return found, dump
	})
}

// lacks waits until a text is nowhere in the database.
func (s *tenancy) lacks(text string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%q is gone", text), func() (bool, string) {
		dump := s.o.fake.Dump()
		return !strings.Contains(dump, text), dump
	})
}

func TestGatewayFollowsTheNodesThatLive(t *testing.T) {
	s := newTenancy(t)
	s.setReady("node-1", corev1.ConditionTrue)
	s.setReady("node-2", corev1.ConditionTrue)
	s.start()
	red := s.namespace("red", true)
	name := "gateway-" + red
	s.create(definition(red, "net", name, primaryFields))
	first := placement.Chassis(name, []string{"node-1", "node-2"})[0]
	other := map[string]string{"node-1": "node-2", "node-2": "node-1"}[first]
	at := func(node string) string { return "HA_Chassis " + topology.GatewayPort(name) + "/" + node }

	s.holds("the gateway is at "+first, at(first))
	s.lacks(at(other))
	s.setReady(first, corev1.ConditionUnknown)
	s.holds("the gateway left a dead node", at(other))
	s.lacks(at(first))
	s.restart()
	s.holds("a new controller places it where it was", at(other))
	s.setReady(first, corev1.ConditionTrue)
	s.holds("the gateway came back", at(first))
	s.lacks(at(other))

	d := definition(red, "net", name, primaryFields)
	if err := s.client.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.lacks(topology.GatewayPort(name))
}

// TestServiceIsOnTheNetworkOfItsNamespace: with the addresses that the pods have there, and on no other network.
func TestServiceIsOnTheNetworkOfItsNamespace(t *testing.T) {
	s := newTenancy(t)
	s.setReady("node-1", corev1.ConditionTrue)
	s.start()
	red := s.namespace("red", true)
	name := "service-" + red
	service, endpoints := serviceIn(red)
	s.create(service, endpoints)
	if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(service), service); err != nil {
		t.Fatal(err)
	}
	balancer := fmt.Sprintf("Load_Balancer Service_%s/web_TCP_cluster", red)
	s.create(definition(red, "net", name, primaryFields), podIn(red, "web", "node-1"))
	own := primaryIPs(s.networks(red, "web"))
	s.holds("the service leads to the pod's address on the network", balancer, fmt.Sprintf("vips: %s:80=%s:8080", service.Spec.ClusterIP, own[0]))
	s.holds("the network's switch has it", "Logical_Switch switch/"+name, "has in load_balancer: "+balancer)
	s.lacks(service.Spec.ClusterIP + "/32")

	service.Spec.Type = corev1.ServiceTypeNodePort
	if err := s.client.Update(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	s.holds("nodes find the service", "Logical_Router_Policy cluster_router/entry/"+service.Spec.ClusterIP, "match: ip4.dst == "+service.Spec.ClusterIP+` && !is_chassis_resident("cr-gateway/`+name+`")`)
	s.holds("and the router has it", "Logical_Router router/"+name, "has in load_balancer: "+balancer)
	s.restart()
	s.holds("a new controller finds it again", balancer)

	s.delete(podIn(red, "web", "node-1"))
	d := definition(red, "net", name, primaryFields)
	if err := s.client.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.lacks(balancer)
}

// serviceIn is a service with the endpoints that Kubernetes would make for its pod: with the address of the default network.
func serviceIn(namespace string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	return service, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.128.0.3"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "web"}}},
	}
}

func primaryIPs(networks map[string]podnetworks.Network) []string {
	annotation, _ := podnetworks.FormatPod(networks)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{podnetworks.PodAnnotation: annotation}}}
	return primaryAddresses(p, true)
}

func TestMigrating(t *testing.T) {
	for name, c := range map[string]struct {
		state *virtv1.VirtualMachineInstanceMigrationState
		want  bool
	}{
		"none":      {nil, false},
		"running":   {&virtv1.VirtualMachineInstanceMigrationState{}, true},
		"completed": {&virtv1.VirtualMachineInstanceMigrationState{Completed: true}, false},
		"failed":    {&virtv1.VirtualMachineInstanceMigrationState{Completed: true, Failed: true}, false},
	} {
		vmi := &virtv1.VirtualMachineInstance{Status: virtv1.VirtualMachineInstanceStatus{MigrationState: c.state}}
		if got := migrating(vmi); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestOpenPorts(t *testing.T) {
	for text, c := range map[string]struct {
		want []topology.OpenPort
		err  string
	}{
		"":                              {},
		"- protocol: tcp\n  port: 9100": {want: []topology.OpenPort{{Protocol: "tcp", Port: 9100}}},
		"- protocol: UDP\n  port: 53\n- protocol: icmp": {want: []topology.OpenPort{{Protocol: "udp", Port: 53}, {Protocol: "icmp"}}},
		"- protocol: icmp\n  port: 1":                   {err: "entry 1: icmp has no ports; leave port out"},
		"- protocol: tcp":                               {err: "entry 1: tcp needs a port from 0 to 65535"},
		"- protocol: tcp\n  port: 70000":                {err: "entry 1: tcp needs a port from 0 to 65535"},
		"- protocol: gre\n  port: 1":                    {err: `entry 1: protocol "gre" is none of tcp, udp, sctp and icmp`},
		"tcp":                                           {err: "want a list of protocol and port"},
	} {
		got, err := parseOpenPorts(text)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q: -want +got:\n%s", text, diff)
		}
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q: error %v, want %q", text, err, c.err)
		}
	}
}
