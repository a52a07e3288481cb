package policy

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
)

// nobody throws rows away.
type nobody struct{}

func (nobody) SetAll(map[string][]nb.Row) {}

// BenchmarkPort is a pod that comes and goes, beside 10,000 others and 1,000 policies in 100 namespaces.
func BenchmarkPort(b *testing.B) {
	e := New(nobody{}, nil)
	e.SetNetwork(Network{Services: true, Addresses: true})
	for i := range 1000 {
		key := netpolicy.Key{Kind: netpolicy.Plain, Namespace: fmt.Sprint("ns-", i%100), Name: fmt.Sprint("p", i)}
		spec := networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i / 100)}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}, {NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(i % 10)}}}}}},
		}
		p, err := netpolicy.Parse(key, nil, spec)
		if err != nil {
			b.Fatal(err)
		}
		e.SetPolicy(p)
	}
	member := func(i int) []Port {
		name := fmt.Sprint("pod-", i)
		return []Port{{Name: name, Primary: true, Namespace: fmt.Sprint("ns-", i%100), Labels: labels.Set{"app": fmt.Sprint(i % 20)}}}
	}
	for i := range 10000 {
		e.SetPorts(fmt.Sprint("pod/", i), member(i))
	}
	for b.Loop() {
		e.SetPorts("pod/new", member(10001))
		e.SetPorts("pod/new", nil)
	}
}
