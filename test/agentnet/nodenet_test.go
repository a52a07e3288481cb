package agentnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/knftables"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/nodenet"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

// theNetwork is the node's side of the overlay with the API objects that it follows.
type theNetwork struct {
	*nodenet.Network
	api client.Client
}

// standNetwork makes the node's side of the overlay stand, as often as it is asked.
func standNetwork(t *testing.T, objects ...client.Object) *theNetwork {
	t.Helper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Annotations: map[string]string{podnetworks.NodeAnnotation: `{"default":["10.128.0.0/23","fd00:10:128::/64"]}`}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeIP.Addr().String()}}},
	}
	api := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(append(objects, node)...).Build()
	rules, err := knftables.New(knftables.InetFamily, nodenet.Table)
	must(t, err)
	n := &theNetwork{nodenet.New(nodenet.Config{
		Settings: settings.Default(), Node: nodeName, Reader: api, Ports: lab.ovs, Guard: lab.guard, NFT: rules, Log: lab.log,
	}), api}
	t.Cleanup(n.Close)
	n.apply(t)
	return n
}

func (n *theNetwork) apply(t *testing.T) {
	t.Helper()
	// The device takes ovs-vswitchd a moment.
	must(t, eventually(func() error { return n.Apply(context.Background()) }))
	must(t, lab.ovs.AwaitInstalled(t.Context(), nodenet.ManagementDevice))
}

func TestEgressIsMasqueraded(t *testing.T) {
	b := newBench(t)
	standNetwork(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	mustPing(t, p.netns, outsideIP.Addr(), outside6.Addr())
	for _, to := range []struct{ outside, node netip.Addr }{{outsideIP.Addr(), nodeIP.Addr()}, {outside6.Addr(), nodeIP6.Addr()}} {
		server := serve(t, lab.outside, netip.AddrPortFrom(to.outside, 0))
		if got := call(t, p.netns, server.address); got != to.node.String() {
			t.Errorf("%s sees the client as %q, want the node %s", to.outside, got, to.node)
		}
	}
}

func TestNodeReachesPodsAndPodsTheNode(t *testing.T) {
	b := newBench(t)
	standNetwork(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	mustPing(t, netns.Own, p.ip, p.ip6)
	mustPing(t, p.netns, nodeIP.Addr(), nodeIP6.Addr(), netip.MustParseAddr("10.128.0.2"), netip.MustParseAddr("fd00:10:128::2"))
	// A node process that uses another address of the node must get its answers through this node.
	if _, err := in(netns.Own, "ping", "-n", "-q", "-c2", "-i0.1", "-W2", "-I", nodeIP.Addr().String(), p.ip.String()); err != nil {
		t.Error(err)
	}
}

// webService is red/web on port 80 with an OVN load balancer like the network controller makes.
func webService(t *testing.T, edit func(*corev1.Service), endpoints ...netip.Addr) (*corev1.Service, []client.Object) {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIPs: []string{"10.96.1.2", "fd00:10:96::12"},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, NodePort: 30080}},
		},
	}
	if edit != nil {
		edit(s)
	}
	var objects []client.Object
	backends := map[bool][]string{}
	for n, ip := range endpoints {
		objects = append(objects, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: fmt.Sprintf("web-%d", n), Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{ip.String()}, NodeName: knftables.PtrTo(nodeName)}},
			Ports:      []discoveryv1.EndpointPort{{Port: knftables.PtrTo(int32(8080)), Protocol: knftables.PtrTo(corev1.ProtocolTCP)}},
		})
		backends[ip.Is4()] = append(backends[ip.Is4()], netip.AddrPortFrom(ip, 8080).String())
	}
	must(t, lab.nbctl("--may-exist", "lb-add", "web", "10.96.1.2:80", strings.Join(backends[true], ","), "tcp",
		"--", "lb-add", "web6", "[fd00:10:96::12]:80", strings.Join(backends[false], ","), "tcp",
		"--", "ls-lb-add", nodeName, "web", "--", "ls-lb-add", nodeName, "web6"))
	t.Cleanup(func() { must(t, lab.nbctl("--if-exists", "lb-del", "web", "--", "lb-del", "web6")) })
	must(t, lab.nbctl("--wait=hv", "--timeout=20", "sync"))
	return s, objects
}

func TestNodePort(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	serve(t, p.netns, netip.AddrPortFrom(p.ip, 8080))
	serve(t, p.netns, netip.AddrPortFrom(p.ip6, 8080))
	s, objects := webService(t, nil, p.ip, p.ip6)
	n := standNetwork(t, append(objects, s)...)
	ports := []netip.AddrPort{netip.AddrPortFrom(nodeIP.Addr(), 30080), netip.AddrPortFrom(nodeIP6.Addr(), 30080)}
	management := map[bool]string{true: "10.128.0.2", false: "fd00:10:128::2"}
	for _, port := range ports {
		for name, from := range map[string]string{"outside": lab.outside, "node": netns.Own, "pod": p.netns} {
			if got := call(t, from, port); got != management[port.Addr().Is4()] {
				t.Errorf("%s from %s: the pod sees %q", port, name, got)
			}
		}
	}
	// From the node to the cluster IP: through the overlay.
	if got := call(t, netns.Own, netip.MustParseAddrPort("10.96.1.2:80")); got != "10.128.0.2" {
		t.Errorf("cluster IP from the node: the pod sees %q", got)
	}
	// With the policy Local the pod sees the client.
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	must(t, n.api.Update(t.Context(), s))
	n.apply(t)
	for _, port := range ports {
		client := outsideIP.Addr()
		if port.Addr().Is6() {
			client = outside6.Addr()
		}
		if got := call(t, lab.outside, port); got != client.String() {
			t.Errorf("%s with policy Local: the pod sees %q, want %s", port, got, client)
		}
	}
	// Without the service nothing answers.
	must(t, n.api.Delete(t.Context(), s))
	n.apply(t)
	if got, err := tryCall(lab.outside, ports[0]); err == nil {
		t.Errorf("the node port of a deleted service answers %q", got)
	}
}

func TestLoadBalancerAddressAndSourceRanges(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	serve(t, p.netns, netip.AddrPortFrom(p.ip, 8080))
	balancer := netip.MustParseAddrPort("198.51.100.7:80")
	_, err := in(lab.outside, "ip", "route", "replace", balancer.Addr().String(), "via", nodeIP.Addr().String())
	must(t, err)
	s, objects := webService(t, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancer.Addr().String()}}
	}, p.ip, p.ip6)
	n := standNetwork(t, append(objects, s)...)
	if got := call(t, lab.outside, balancer); got != "10.128.0.2" {
		t.Errorf("the pod sees %q", got)
	}
	for ranges, open := range map[string]bool{"203.0.113.0/24": false, outsideIP.Masked().String(): true} {
		s.Spec.LoadBalancerSourceRanges = []string{ranges}
		must(t, n.api.Update(t.Context(), s))
		n.apply(t)
		if got, err := tryCall(lab.outside, balancer); (err == nil) != open {
			t.Errorf("source range %s: got %q, %v", ranges, got, err)
		}
	}
}

func TestHostPort(t *testing.T) {
	b := newBench(t)
	p, other := newPod(t, b.kube), newPod(t, b.kube)
	b.add(t, p)
	b.add(t, other)
	serve(t, p.netns, netip.AddrPortFrom(p.ip, 8080))
	serve(t, p.netns, netip.AddrPortFrom(p.ip6, 8080))
	standNetwork(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: p.name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 9090}}}}},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: p.ip.String()}, {IP: p.ip6.String()}}},
	})
	for from, want := range map[string]string{lab.outside: outsideIP.Addr().String(), other.netns: "10.128.0.2", netns.Own: "10.128.0.2"} {
		if got := call(t, from, netip.AddrPortFrom(nodeIP.Addr(), 9090)); got != want {
			t.Errorf("the pod sees %q, want %s", got, want)
		}
	}
	if got := call(t, lab.outside, netip.AddrPortFrom(nodeIP6.Addr(), 9090)); got != outside6.Addr().String() {
		t.Errorf("the pod sees %q", got)
	}
}

// A service whose endpoint is a host: OVN would send the node's own packet back to the node.
func TestNodeReachesServicesOfHosts(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	serve(t, lab.outside, netip.AddrPortFrom(outsideIP.Addr(), 8080))
	serve(t, lab.outside, netip.AddrPortFrom(outside6.Addr(), 8080))
	s, objects := webService(t, nil, outsideIP.Addr(), outside6.Addr())
	standNetwork(t, append(objects, s)...)
	for _, to := range []struct {
		address netip.AddrPort
		node    netip.Addr
	}{
		{netip.MustParseAddrPort("10.96.1.2:80"), nodeIP.Addr()},
		{netip.MustParseAddrPort("[fd00:10:96::12]:80"), nodeIP6.Addr()},
		{netip.AddrPortFrom(nodeIP.Addr(), 30080), nodeIP.Addr()},
	} {
		for name, from := range map[string]string{"node": netns.Own, "pod": p.netns} {
			if got := call(t, from, to.address); got != to.node.String() {
				t.Errorf("%s from %s: the host sees %q, want %s", to.address, name, got, to.node)
			}
		}
	}
}

// ovs-vswitchd takes the management port along when it is killed; the agent sees it come back.
func TestManagementPortComesBack(t *testing.T) {
	b := newBench(t)
	n := standNetwork(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	mustPing(t, netns.Own, p.ip, p.ip6)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wake := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		watching <- link.Watch(ctx, nodenet.ManagementDevice, func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	}()
	go func() {
		for {
			select {
			case <-wake:
				_ = n.Apply(ctx) // the next notification tries again
			case <-ctx.Done():
				return
			}
		}
	}()
	lab.kill(t, "vswitchd")
	must(t, lab.startSwitch())
	must(t, eventually(func() error { return errors.Join(ping(netns.Own, p.ip), ping(p.netns, outside6.Addr())) }))
	cancel()
	must(t, <-watching)
}

// Rules are not written again when nothing changed, and come back when somebody removes them.
func TestRulesAreStable(t *testing.T) {
	n := standNetwork(t)
	before := ruleset(t)
	n.apply(t)
	if after := ruleset(t); after != before {
		t.Errorf("applied twice, the rules changed:\n%s\nbefore:\n%s", after, before)
	}
	must(t, run("nft", "delete", "table", "inet", nodenet.Table))
	again := standNetwork(t) // as an agent that restarts
	again.apply(t)
	if got, want := handles.ReplaceAllString(ruleset(t), ""), handles.ReplaceAllString(before, ""); got != want {
		t.Errorf("after somebody removed them, the rules are:\n%s\nbefore:\n%s", got, want)
	}
}

// handles are the kernel's numbers of rules.
var handles = regexp.MustCompile(` # handle \d+`)

// ruleset lists the rules with their handles, which change when a rule is written anew.
func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "-a", "list", "table", "inet", nodenet.Table).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// server tells each client the address that it sees it under.
type server struct{ address netip.AddrPort }

func serve(t *testing.T, path string, at netip.AddrPort) server {
	t.Helper()
	var listener net.Listener
	must(t, netns.Do(path, func() (err error) {
		listener, err = net.Listen("tcp", at.String())
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
			_, _ = io.WriteString(conn, peer.Unmap().String())
			conn.Close()
		}
	}()
	return server{listener.Addr().(*net.TCPAddr).AddrPort()}
}

func call(t *testing.T, path string, to netip.AddrPort) string {
	t.Helper()
	got, err := tryCall(path, to)
	if err != nil {
		t.Error(err)
	}
	return got
}

func tryCall(path string, to netip.AddrPort) (string, error) {
	var conn net.Conn
	err := netns.Do(path, func() (err error) {
		// No Happy Eyeballs: a dialer that starts goroutines would leave the namespace.
		conn, err = (&net.Dialer{Timeout: 3 * time.Second, FallbackDelay: -1}).Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
