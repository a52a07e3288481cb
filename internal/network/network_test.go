package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/ovn"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

func TestNodesKeepTheirSubnets(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	one, two := node("node-1"), node("node-2")
	s.create(one)
	kill := s.start(o, settings.Default())
	const (
		first  = `{"default":["10.128.0.0/23","fd00:10:128::/64"]}`
		second = `{"default":["10.128.2.0/23","fd00:10:128:1::/64"]}`
		third  = `{"default":["10.128.4.0/23","fd00:10:128:2::/64"]}`
		fourth = `{"default":["10.128.6.0/23","fd00:10:128:3::/64"]}`
	)
	if got := s.subnets("node-1"); got != first {
		t.Errorf("node-1 has %s, want %s", got, first)
	}
	s.create(two)
	if got := s.subnets("node-2"); got != second {
		t.Errorf("node-2 has %s, want %s", got, second)
	}
	s.hasRow(o, "Logical_Switch node-2", true)

	kill()
	s.delete(one) // nobody sees it
	o.fake.Wipe()
	s.start(o, settings.Default())
	s.hasRow(o, "Logical_Switch node-2", true)
	s.until("the chassis of node-1 is removed", func() (bool, string) { return o.chassisRemoved("node-1"), "" })
	s.create(node("node-3"))
	if got := s.subnets("node-2"); got != second {
		t.Errorf("after a restart node-2 has %s, want %s", got, second)
	}
	if got := s.subnets("node-3"); got != third {
		t.Errorf("node-3 has %s, want %s", got, third)
	}
	s.delete(two)
	s.hasRow(o, "Logical_Switch node-2", false)
	s.create(node("node-4"))
	if got := s.subnets("node-4"); got != fourth {
		t.Errorf("node-4 has %s, want %s: a slice that was given back rests", got, fourth)
	}
}

func TestANodeKeepsItsSubnetsWithoutALedger(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	n := node("node-1")
	n.Annotations = map[string]string{podnetworks.NodeAnnotation: `{"default":["10.129.0.0/23","fd00:10:128:7::/64"]}`}
	foreign := node("node-2")
	foreign.Annotations = map[string]string{podnetworks.NodeAnnotation: `{"default":["192.168.0.0/24"],"other":["10.9.0.0/24"]}`}
	s.create(n, foreign)
	s.start(o, settings.Default())
	s.hasRow(o, "Logical_Switch node-2", true)
	if got := s.subnets("node-1"); got != n.Annotations[podnetworks.NodeAnnotation] {
		t.Errorf("node-1 has %s, want what it had", got)
	}
	want := `{"default":["10.129.2.0/23","fd00:10:128:8::/64"],"other":["10.9.0.0/24"]}`
	s.until("node-2's annotation is put right", func() (bool, string) { got := s.subnets("node-2"); return got == want, got })
}

// TestTwoControllersNeverGiveOneSliceTwice runs two controllers that both believe to lead.
func TestTwoControllersNeverGiveOneSliceTwice(t *testing.T) {
	s := newSite(t)
	for range 2 {
		s.start(&overlay{fake: ovn.NewFake()}, settings.Default())
	}
	for i := range 20 {
		s.create(node(fmt.Sprintf("node-%d", i)))
	}
	owners := map[netip.Prefix]string{}
	for i := range 20 {
		name := fmt.Sprintf("node-%d", i)
		networks, err := podnetworks.ParseNode(map[string]string{podnetworks.NodeAnnotation: s.subnets(name)})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range networks[podnetworks.Default] {
			if other, taken := owners[p]; taken {
				t.Errorf("%s belongs to %s and to %s", p, other, name)
			}
			owners[p] = name
		}
	}
}

func TestPodsGetAddressesAndPorts(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, settings.Default())
	early := pod("early", "node-1") // before its node is known
	host := pod("host", "node-1")
	host.Spec.HostNetwork = true
	s.create(early, host, node("node-1"))
	unscheduled := pod("unscheduled", "")
	s.create(unscheduled)

	dual := []netip.Prefix{netip.MustParsePrefix("10.128.0.3/23"), netip.MustParsePrefix("fd00:10:128::3/64")}
	want := podnetworks.Network{
		IPs: dual, MAC: podnetworks.MAC(dual[0].Addr()), MTU: 1400, Role: podnetworks.Primary,
		Gateways: []netip.Addr{netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:10:128::1")},
	}
	if diff := cmp.Diff(want, s.network("early"), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("annotation (-want +got):\n%s", diff)
	}
	s.hasRow(o, "Logical_Switch_Port default_early", true)

	if err := s.client.SubResource("binding").Create(t.Context(), unscheduled, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}}); err != nil {
		t.Fatal(err)
	}
	s.network("unscheduled")
	s.hasRow(o, "Logical_Switch_Port default_unscheduled", true)
	s.hasRow(o, "Logical_Switch_Port default_host", false)

	early.Status.Phase = corev1.PodSucceeded
	if err := s.client.Status().Update(t.Context(), early); client.IgnoreNotFound(err) != nil {
		early = &corev1.Pod{}
		if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "early"}, early); err != nil {
			t.Fatal(err)
		}
		early.Status.Phase = corev1.PodSucceeded
		if err := s.client.Status().Update(t.Context(), early); err != nil {
			t.Fatal(err)
		}
	}
	s.hasRow(o, "Logical_Switch_Port default_early", false)
	s.delete(unscheduled)
	s.hasRow(o, "Logical_Switch_Port default_unscheduled", false)
}

// TestPodsKeepTheirAddresses kills the controller between pods.
func TestPodsKeepTheirAddresses(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	kill := s.start(o, settings.Default())
	s.create(node("node-1"), pod("a", "node-1"), pod("b", "node-1"))
	before := map[string]string{}
	for _, name := range []string{"a", "b"} {
		before[name] = fmt.Sprint(s.network(name).IPs)
	}
	kill()
	s.create(pod("c", "node-1"))
	s.delete(pod("b", "node-1"))
	s.create(pod("b", "node-1")) // somebody else of that name
	s.start(o, settings.Default())
	seen := map[string]string{before["a"]: "a"}
	for _, name := range []string{"b", "c"} {
		ips := fmt.Sprint(s.network(name).IPs)
		if other, taken := seen[ips]; taken {
			t.Errorf("%s and %s both have %s", name, other, ips)
		}
		seen[ips] = name
		s.hasRow(o, "Logical_Switch_Port default_"+name, true)
	}
	if got := fmt.Sprint(s.network("a").IPs); got != before["a"] {
		t.Errorf("a had %s and has %s", before["a"], got)
	}
}

func TestAPodWaitsForAnAddress(t *testing.T) {
	small := settings.Default()
	small.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.128.0.0/24"), netip.MustParsePrefix("fd00:10:128::/48")}
	small.NodePrefixLen4 = 29 // eight addresses, four of them for pods
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, small)
	s.create(node("node-1"))
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		s.create(pod(name, "node-1"))
		if name != "e" {
			s.network(name)
		}
	}
	s.until("pod e has an event", func() (bool, string) {
		var events eventsv1.EventList
		if err := s.client.List(t.Context(), &events, client.InNamespace("default")); err != nil {
			return false, err.Error()
		}
		return slices.ContainsFunc(events.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == "e" && e.Reason == "ErrorAllocatingPod" && strings.Contains(e.Note, "subnet address pool exhausted")
		}), fmt.Sprint(len(events.Items), " events")
	})
	freed := s.network("b").IPs
	s.delete(pod("b", "node-1"))
	if got := s.network("e").IPs; got[0] != freed[0] {
		t.Errorf("e has %v, want %v, the only free address", got, freed)
	}
}

// TestAnnotationsAreNotRequests: users can write annotations into their pods; only addresses that are the node's and free
// count.
func TestAnnotationsAreNotRequests(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, settings.Default())
	s.create(node("node-1"), pod("victim", "node-1"))
	victim := s.network("victim")
	annotations := map[string]string{
		"outside": `{"default":{"ip_addresses":["192.0.2.1/24"],"mac_address":"0a:58:c0:00:02:01"}}`,
		"taken":   fmt.Sprintf(`{"default":{"ip_addresses":["%s","%s"],"mac_address":"0a:58:0a:80:00:03"}}`, victim.IPs[0], victim.IPs[1]),
		"gateway": `{"default":{"ip_addresses":["10.128.0.1/23","fd00:10:128::1/64"],"mac_address":"0a:58:0a:80:00:01"}}`,
		"mac":     `{"default":{"ip_addresses":["10.128.0.99/23","fd00:10:128::99/64"],"mac_address":"0a:58:0a:80:00:01"}}`,
		"garbage": `{"default":`,
	}
	for name, text := range annotations {
		p := pod(name, "node-1")
		p.Annotations = map[string]string{podnetworks.PodAnnotation: text}
		s.create(p)
	}
	seen := map[netip.Prefix]string{victim.IPs[0]: "victim"}
	subnet := netip.MustParsePrefix("10.128.0.0/23")
	for name, text := range annotations {
		s.until(name+"'s annotation is written anew", func() (bool, string) {
			var p corev1.Pod
			err := s.client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: name}, &p)
			return err == nil && p.Annotations[podnetworks.PodAnnotation] != text, p.Annotations[podnetworks.PodAnnotation]
		})
		got := s.network(name)
		if other, taken := seen[got.IPs[0]]; taken || !subnet.Contains(got.IPs[0].Addr()) || got.IPs[0].Addr() == podnetworks.Gateway(subnet) {
			t.Errorf("%s has %v (taken by %q)", name, got.IPs, other)
		}
		if want := podnetworks.MAC(got.IPs[0].Addr()).String(); got.MAC.String() != want {
			t.Errorf("%s has MAC %s, want %s", name, got.MAC, want)
		}
		seen[got.IPs[0]] = name
	}
}

func TestServicesBecomeLoadBalancers(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, settings.Default())
	s.create(node("node-1"))
	s.subnets("node-1")
	local := corev1.ServiceInternalTrafficPolicyLocal
	web := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.7.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("www")}}},
	}
	s.create(web)
	s.hasVIP(o, "Service_default/web_TCP_cluster", "10.96.7.7:80=")
	name, port, protocol, onNode := "http", int32(8080), corev1.ProtocolTCP, "node-1"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.128.0.9"}, NodeName: &onNode}},
	}
	s.create(slice)
	t.Cleanup(func() { _ = s.client.Delete(context.Background(), slice) })
	s.hasVIP(o, "Service_default/web_TCP_cluster", "10.96.7.7:80=10.128.0.9:8080")

	web.Spec.InternalTrafficPolicy = &local
	if err := s.client.Update(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	s.hasVIP(o, "Service_default/web_TCP_node_switch_node-1", "10.96.7.7:80=10.128.0.9:8080")
	s.hasRow(o, "Load_Balancer Service_default/web_TCP_cluster", false)
	s.create(node("node-2"))
	s.hasVIP(o, "Service_default/web_TCP_node_switch_node-2", "10.96.7.7:80=")
	s.delete(web)
	s.hasRow(o, "Load_Balancer Service_default/web_TCP_node_switch_node-1", false)
}

func (s *site) hasVIP(o *overlay, balancer, vip string) {
	s.t.Helper()
	s.until(balancer+" has "+vip, func() (bool, string) {
		dump := o.fake.Dump()
		_, rest, found := strings.Cut(dump, "Load_Balancer "+balancer+"\n")
		for line := range strings.Lines(rest) {
			if !strings.HasPrefix(line, "  ") {
				break
			}
			if line == "  vips: "+vip+"\n" {
				return true, ""
			}
		}
		return false, fmt.Sprintf("found: %v\n%s", found, dump)
	})
}

func TestTheClusterDNSServiceExists(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, settings.Default())
	served := func() (bool, string) {
		dump := o.fake.Dump()
		return strings.Contains(dump, "vips: 10.96.0.10:53=172.30.0.1:53 ; [fd00:10:96::a]:53=[fd00:172:30::1]:53"), dump
	}
	s.until("kube-dns is served", served)
	s.delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}})
	s.until("kube-dns is made again", func() (bool, string) {
		var service corev1.Service
		err := s.client.Get(t.Context(), client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}, &service)
		return err == nil && service.DeletionTimestamp == nil, fmt.Sprint(err)
	})
	s.until("kube-dns is served again", served)
}

// Pods name the cluster's default network by a definition, which nobody can lose.
func TestTheDefaultNetworksDefinitionExists(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	err := s.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: defaultDefinition.Namespace}})
	if client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	s.start(o, settings.Default())
	d := &nadv1.NetworkAttachmentDefinition{}
	stands := func() (bool, string) {
		err := s.client.Get(t.Context(), defaultDefinition, d)
		return err == nil && d.DeletionTimestamp == nil && d.Spec.Config == `{"cniVersion":"1.0.0","name":"ovn-kubernetes","type":"ovn-k8s-cni-overlay"}`, fmt.Sprint(err, d.Spec)
	}
	s.until("the definition stands", stands)
	d.Spec.Config = "{}"
	if err := s.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.until("it is put right", stands)
	s.delete(d)
	s.until("it is made again", stands)
}

// TestAPodDoesNotWaitForItsAddress measures from the creation of a scheduled pod to its annotation.
func TestAPodDoesNotWaitForItsAddress(t *testing.T) {
	s, o := newSite(t), &overlay{fake: ovn.NewFake()}
	s.start(o, settings.Default())
	s.create(node("node-1"))
	s.subnets("node-1")
	watcher, err := client.NewWithWatch(control.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := watcher.Watch(t.Context(), &corev1.PodList{}, client.InNamespace("default"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var took []time.Duration
	for i := range 50 {
		p := pod(fmt.Sprintf("p%d", i), "node-1")
		s.create(p)
		created := time.Now()
		for e := range w.ResultChan() {
			got, ok := e.Object.(*corev1.Pod)
			if ok && got.Name == p.Name && got.Annotations[podnetworks.PodAnnotation] != "" {
				break
			}
		}
		took = append(took, time.Since(created))
	}
	slices.Sort(took)
	t.Logf("created to annotated: median %s, worst %s", took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 100*time.Millisecond {
		t.Errorf("half of the pods wait longer than %s for their addresses, want 100ms", median)
	}
}
