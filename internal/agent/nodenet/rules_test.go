package nodenet

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"patchbay/internal/golden"
)

var here, there, here6 = at("node-1", "10.128.0.5"), at("node-2", "10.128.2.9"), at("node-1", "fd00:10:128::5")

// cases are the ways in which a service is reached from outside the overlay. Their golden files hold what the case adds to
// the table of a node without services.
var cases = map[string]serviceCase{
	"cluster ip":     {newService(nil), []discoveryv1.EndpointSlice{newSlice(here, there)}},
	"node port":      {newService(nodePort(false)), []discoveryv1.EndpointSlice{newSlice(here, there)}},
	"local":          {newService(nodePort(true)), []discoveryv1.EndpointSlice{newSlice(here, at("node-1", "10.128.0.6"), there), newSlice(here6)}},
	"local affinity": {newService(func(s *corev1.Service) { nodePort(true)(s); s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }), []discoveryv1.EndpointSlice{newSlice(here, at("node-1", "10.128.0.6"))}},
	"local nowhere":  {newService(nodePort(true)), []discoveryv1.EndpointSlice{newSlice(there)}},
	"local ending":   {newService(nodePort(true)), []discoveryv1.EndpointSlice{newSlice(terminating(here), there)}},
	"host endpoints": {newService(func(s *corev1.Service) { s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1] }), []discoveryv1.EndpointSlice{newSlice(at("", "172.30.0.1"))}},
	"host node port": {newService(nodePort(false)), []discoveryv1.EndpointSlice{newSlice(at("node-1", "172.30.0.11"), there)}},
	"external ip":    {newService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }), []discoveryv1.EndpointSlice{newSlice(here)}},
	"load balancer":  {newService(loadBalancer(nil)), []discoveryv1.EndpointSlice{newSlice(here)}},
	"balancer proxy": {newService(loadBalancer(func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress[0].IPMode = knftables.PtrTo(corev1.LoadBalancerIPModeProxy)
	})), []discoveryv1.EndpointSlice{newSlice(here)}},
	"source ranges": {newService(loadBalancer(func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", " 192.0.2.0/24"}
	})), []discoveryv1.EndpointSlice{newSlice(here)}},
	"local source ranges": {newService(loadBalancer(func(s *corev1.Service) {
		nodePort(true)(s)
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
	})), []discoveryv1.EndpointSlice{newSlice(here)}},
	"udp":            {newService(func(s *corev1.Service) { nodePort(false)(s); s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }), nil},
	"tenant":         {newService(ofTenant(nodePort(false))), []discoveryv1.EndpointSlice{newSlice(here, there)}},
	"tenant local":   {newService(ofTenant(nodePort(true))), []discoveryv1.EndpointSlice{newSlice(here, there)}},
	"tenant nowhere": {newService(ofTenant(nodePort(true))), []discoveryv1.EndpointSlice{newSlice(there)}},
	"headless": {newService(func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"}
	}), []discoveryv1.EndpointSlice{newSlice(here)}},
}

func TestRulesWithoutServices(t *testing.T) {
	tb, fake := newTable(t)
	mustApply(t, tb, Rules(testPlan(t), nil, nil, nil))
	golden.Check(t, "nft", fake.Dump())
}

func TestRules(t *testing.T) {
	tb, fake := newTable(t)
	mustApply(t, tb, Rules(testPlan(t), nil, nil, nil))
	without := strings.Split(fake.Dump(), "\n")
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			tb, fake := newTable(t)
			mustApply(t, tb, c.rules(t))
			golden.Check(t, "nft", added(without, strings.Split(fake.Dump(), "\n")))
		})
	}
}

// added returns the lines that are not in before.
func added(before, after []string) string {
	known := map[string]bool{}
	for _, line := range before {
		known[line] = true
	}
	var out strings.Builder
	for _, line := range after {
		if !known[line] {
			out.WriteString(line + "\n")
		}
	}
	return out.String()
}

func TestLockedLegs(t *testing.T) {
	pod := func(edit func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web", Annotations: map[string]string{
			"k8s.ovn.org/pod-networks": `{"default":{"ip_addresses":["10.128.0.7/23","fd00:10:128::7/64"],"mac_address":"0a:58:0a:80:00:07","role":"infrastructure-locked"}}`,
		}}}
		edit(&p)
		return p
	}
	for name, c := range map[string]struct {
		edit   func(*corev1.Pod)
		locked bool
	}{
		"locked":       {func(*corev1.Pod) {}, true},
		"ended":        {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		"host network": {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false},
		"open": {func(p *corev1.Pod) {
			p.Annotations["k8s.ovn.org/pod-networks"] = strings.Replace(p.Annotations["k8s.ovn.org/pod-networks"], "infrastructure-locked", "primary", 1)
		}, false},
		"unreadable": {func(p *corev1.Pod) { p.Annotations["k8s.ovn.org/pod-networks"] = "{" }, false},
	} {
		r := Rules(testPlan(t), nil, nil, lockedLegs([]corev1.Pod{pod(c.edit)}))
		_, four := r.Maps["locked4"].Elements["10.128.0.7"]
		_, six := r.Maps["locked6"].Elements["fd00:10:128::7"]
		if four != c.locked || six != c.locked {
			t.Errorf("%s: IPv4 locked %v, IPv6 locked %v, want %v", name, four, six, c.locked)
		}
	}
}

func TestHostPorts(t *testing.T) {
	pod := func(name string, edit func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: name},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}}}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.128.0.7"}, {IP: "fd00:10:128::7"}}},
		}
		if edit != nil {
			edit(&p)
		}
		return p
	}
	port := func(p *corev1.Pod) *corev1.ContainerPort { return &p.Spec.Containers[0].Ports[0] }
	always := corev1.ContainerRestartPolicyAlways
	for name, edit := range map[string]func(*corev1.Pod){
		"plain":       nil,
		"udp":         func(p *corev1.Pod) { port(p).Protocol = corev1.ProtocolUDP },
		"one address": func(p *corev1.Pod) { port(p).HostIP = "172.30.0.11" },
		"any address": func(p *corev1.Pod) { port(p).HostIP = "0.0.0.0" },
		"sidecar": func(p *corev1.Pod) {
			p.Spec.InitContainers = p.Spec.Containers
			p.Spec.Containers = nil
			p.Spec.InitContainers[0].RestartPolicy = &always
		},
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"ended":        func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"no address":   func(p *corev1.Pod) { p.Status.PodIPs = nil },
		"taken":        func(p *corev1.Pod) { port(p).HostPort = 30080 }, // by the service's node port
	} {
		t.Run(name, func(t *testing.T) {
			before, fakeBefore := newTable(t)
			services := readServices("node-1", []corev1.Service{cases["node port"].service}, cases["node port"].slices, nil)
			mustApply(t, before, Rules(testPlan(t), services, nil, nil))
			tb, fake := newTable(t)
			mustApply(t, tb, Rules(testPlan(t), services, readHostPorts([]corev1.Pod{pod("web", edit)}), nil))
			golden.Check(t, "nft", added(strings.Split(fakeBefore.Dump(), "\n"), strings.Split(fake.Dump(), "\n")))
		})
	}
}

// From any set of rules to any other, only what differs is written, and the result is what a fresh start would write.
func TestApplyWritesTheDifference(t *testing.T) {
	for from, before := range cases {
		for to, after := range cases {
			tb, fake := newTable(t)
			mustApply(t, tb, before.rules(t))
			mustApply(t, tb, after.rules(t))
			fresh, want := newTable(t)
			mustApply(t, fresh, after.rules(t))
			if fake.Dump() != want.Dump() {
				t.Errorf("%s -> %s:\n%s\nwant\n%s", from, to, fake.Dump(), want.Dump())
			}
			if mustApply(t, tb, after.rules(t)) {
				t.Errorf("%s -> %s: applied again, something was written", from, to)
			}
		}
	}
}

func TestChangeOfOneEndpointIsSmall(t *testing.T) {
	_, fake := newTable(t)
	tx := fake.NewTransaction()
	before := serviceCase{newService(nodePort(true)), []discoveryv1.EndpointSlice{newSlice(here)}}
	after := serviceCase{newService(nodePort(true)), []discoveryv1.EndpointSlice{newSlice(here, at("node-1", "10.128.0.6"))}}
	change(tx, before.rules(t), after.rules(t))
	golden.Check(t, "nft", tx.String())
}

func TestFailedWriteStartsFromScratch(t *testing.T) {
	tb, fake := newTable(t)
	mustApply(t, tb, Rules(testPlan(t), nil, nil, nil))
	want := fake.Dump()
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	tb.forgetIfChanged(t.Context())
	mustApply(t, tb, Rules(testPlan(t), nil, nil, nil))
	if got := fake.Dump(); got != want {
		t.Errorf("after somebody removed the table:\n%s\nwant\n%s", got, want)
	}
}
