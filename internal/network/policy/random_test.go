package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"patchbay/internal/netpolicy"
	"patchbay/internal/topology"
)

// world is namespaces, pods and policies on the default network, and the Enforcer that was told of every change to them.
type world struct {
	*bench
	random     *rand.Rand
	labels     map[string]labels.Set // of namespaces
	pods       map[string]Port
	specs      map[netpolicy.Key]networkingv1.NetworkPolicySpec
	namespaces []string
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{
		bench: newBench(t), random: rand.New(rand.NewPCG(seed, 1)), namespaces: []string{"a", "b", "c"},
		labels: map[string]labels.Set{}, pods: map[string]Port{}, specs: map[netpolicy.Key]networkingv1.NetworkPolicySpec{},
	}
}

func pick[T any](w *world, of ...T) T { return of[w.random.IntN(len(of))] }

func (w *world) set() labels.Set {
	return pick(w, labels.Set{}, labels.Set{"x": "1"}, labels.Set{"x": "2"}, labels.Set{"x": "1", "y": "1"})
}

func (w *world) selector() *metav1.LabelSelector {
	return pick(w, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"x": "1"}},
		&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "x", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"1"}}}},
		&metav1.LabelSelector{MatchLabels: map[string]string{"x": "1", "y": "1"}})
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range w.random.IntN(3) {
		out = append(out, pick(w, networkingv1.NetworkPolicyPeer{PodSelector: w.selector()}, networkingv1.NetworkPolicyPeer{NamespaceSelector: w.selector()},
			networkingv1.NetworkPolicyPeer{PodSelector: w.selector(), NamespaceSelector: w.selector()},
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/28", Except: []string{"10.0.0.4/30"}}}))
	}
	return out
}

func (w *world) ports() []networkingv1.NetworkPolicyPort {
	number, name, last := intstr.FromInt32(80), intstr.FromString("http"), int32(90)
	var out []networkingv1.NetworkPolicyPort
	for range w.random.IntN(3) {
		protocol := pick(w, corev1.ProtocolTCP, corev1.ProtocolUDP)
		out = append(out, pick(w, networkingv1.NetworkPolicyPort{Protocol: &protocol}, networkingv1.NetworkPolicyPort{Port: &number},
			networkingv1.NetworkPolicyPort{Port: &name, Protocol: &protocol}, networkingv1.NetworkPolicyPort{Port: &number, EndPort: &last, Protocol: &protocol}))
	}
	return out
}

func (w *world) spec() networkingv1.NetworkPolicySpec {
	s := networkingv1.NetworkPolicySpec{PodSelector: *w.selector()}
	for range w.random.IntN(3) {
		s.Ingress = append(s.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
		s.Egress = append(s.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	s.PolicyTypes = pick(w, nil, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress})
	return s
}

// step changes one thing.
func (w *world) step() {
	key := netpolicy.Key{Kind: netpolicy.Plain, Namespace: pick(w, w.namespaces...), Name: fmt.Sprint("p", w.random.IntN(2))}
	name := fmt.Sprint("pod", w.random.IntN(8))
	switch w.random.IntN(7) {
	case 0:
		w.labels[key.Namespace] = w.set()
		w.SetNamespace(key.Namespace, w.labels[key.Namespace])
	case 1:
		delete(w.specs, key)
		w.RemovePolicy(key)
	case 2, 3:
		w.specs[key] = w.spec()
		p, err := netpolicy.Parse(key, nil, w.specs[key])
		if err != nil {
			w.t.Fatal(err)
		}
		w.SetPolicy(p)
	case 4:
		delete(w.pods, name)
		w.SetPorts("pod/"+name, nil)
	default:
		p := Port{Name: name, Primary: true, Namespace: key.Namespace, Labels: w.set(),
			Named: pick(w, nil, []NamedPort{{"http", "tcp", 80}}, []NamedPort{{"http", "tcp", 8080}, {"http", "udp", 80}})}
		w.pods[name] = p
		w.SetPorts("pod/"+name, []Port{p})
	}
}

// again is an Enforcer that learns everything at once.
func (w *world) again() string {
	fresh := newBench(w.t)
	for name, p := range w.pods {
		fresh.SetPorts("pod/"+name, []Port{p})
	}
	for key, spec := range w.specs {
		p, _ := netpolicy.Parse(key, nil, spec)
		fresh.SetPolicy(p)
	}
	for name, set := range w.labels {
		fresh.SetNamespace(name, set)
	}
	return fresh.dump()
}

func address(pod string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, 2 * (pod[len(pod)-1] - '0')})
}

// groups are the port groups that each pod is in, as the rows say it.
func (w *world) groups() map[string]map[string]bool {
	in := map[string]map[string]bool{}
	for name := range w.pods {
		in[name] = map[string]bool{}
		for _, row := range w.owners[portOwner(name)] {
			for _, l := range row.Links {
				in[name][l.Parent.Key] = true
			}
		}
	}
	return in
}

// allowed follows the rows: a direction is open when the port is not isolated or some rule fits.
func (w *world) allowed(in map[string]map[string]bool, d netpolicy.Direction, self, peer, protocol string, number uint16) bool {
	isolated := topology.PolicyMember("", "", nil, []netpolicy.Direction{d}).Links[0].Parent.Key
	if !in[self][isolated] {
		return true
	}
	for _, r := range w.networks[""].policies {
		rules := [2][]topology.PolicyRule{r.policy.Ingress, r.policy.Egress}[d]
		for _, rule := range rules {
			has := func(g topology.PolicyGroup) bool { return in[peer][g.Name()] }
			from := rule.Anyone || slices.ContainsFunc(rule.Groups, has) || slices.ContainsFunc(rule.Blocks, func(b netpolicy.Block) bool { return holds(b, address(peer)) })
			to := len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, func(p netpolicy.Range) bool {
				return p.Protocol == protocol && (p.First == 0 || p.First <= number && number <= p.Last)
			})
			if in[self][rule.Target.Name()] && from && to {
				return true
			}
		}
	}
	return false
}

func holds(b netpolicy.Block, a netip.Addr) bool {
	return b.CIDR.Contains(a) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// defined is what the definition of a NetworkPolicy says, pod by pod.
func (w *world) defined(d netpolicy.Direction, self, peer string, protocol string, number uint16) bool {
	isolated, pod, other := false, w.pods[self], w.pods[peer]
	server := [2]Port{pod, other}[d] // whose names of ports count
	for key, spec := range w.specs {
		p, _ := netpolicy.Parse(key, nil, spec)
		if key.Namespace != pod.Namespace || !p.Pods.Matches(pod.Labels) || !p.Isolates[d] {
			continue
		}
		isolated = true
		for _, rule := range p.Rules[d] {
			from := rule.Anyone || slices.ContainsFunc(rule.Peers, func(peer netpolicy.Peer) bool {
				switch {
				case peer.Block != nil:
					return holds(*peer.Block, address(other.Name))
				case peer.Namespaces == nil:
					return other.Namespace == key.Namespace && peer.Pods.Matches(other.Labels)
				}
				return peer.Namespaces.Matches(w.labels[other.Namespace]) && peer.Pods.Matches(other.Labels)
			})
			to := len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, func(p netpolicy.Ports) bool {
				if p.Name != "" {
					return p.Protocol == protocol && slices.Contains(server.Named, NamedPort{p.Name, protocol, number}) && !onlyByBlock(w, d, rule, key, other)
				}
				return p.Protocol == protocol && (p.First == 0 || p.First <= number && number <= p.Last)
			})
			if from && to {
				return true
			}
		}
	}
	return !isolated
}

// onlyByBlock tells whether a rule means a peer by its address alone: what a peer outside calls its ports nobody knows, so names of
// ports do not go with blocks on the way out.
func onlyByBlock(w *world, d netpolicy.Direction, rule netpolicy.Rule, key netpolicy.Key, other Port) bool {
	if d == netpolicy.Ingress || rule.Anyone {
		return false
	}
	return !slices.ContainsFunc(rule.Peers, func(p netpolicy.Peer) bool {
		if p.Block != nil || !p.Pods.Matches(other.Labels) {
			return false
		}
		return p.Namespaces == nil && other.Namespace == key.Namespace || p.Namespaces != nil && p.Namespaces.Matches(w.labels[other.Namespace])
	})
}

// TestAgainstTheDefinition: after any changes in any order the rows are those of a fresh start, and allow exactly what the policies say.
func TestAgainstTheDefinition(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(t, seed)
		for range 60 {
			w.step()
		}
		if diff := cmp.Diff(w.again(), w.dump()); diff != "" {
			t.Fatalf("seed %d: changes leave something else than a fresh start (-fresh +changed):\n%s", seed, diff)
		}
		in := w.groups()
		for _, self := range slices.Sorted(maps.Keys(w.pods)) {
			for _, peer := range slices.Sorted(maps.Keys(w.pods)) {
				for _, traffic := range []NamedPort{{"", "tcp", 80}, {"", "udp", 80}, {"", "tcp", 85}, {"", "tcp", 8080}, {"", "udp", 99}} {
					for _, d := range netpolicy.Directions {
						got, want := w.allowed(in, d, self, peer, traffic.Protocol, traffic.Number), w.defined(d, self, peer, traffic.Protocol, traffic.Number)
						if got != want {
							t.Fatalf("seed %d: %s of %s with %s, %s %d: allowed %v, want %v\n%+v\n%s", seed, d, self, peer, traffic.Protocol, traffic.Number, got, want, w.specs, w.dump())
						}
					}
				}
			}
		}
	}
}
