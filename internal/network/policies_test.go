package network

import (
	"strings"
	"testing"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/netpolicy"
	"patchbay/internal/topology"
)

// in waits until a port is in the group of what a text selects on a network, or is not.
func (s *tenancy) in(port, network, selects string, want bool) {
	s.t.Helper()
	group := topology.PolicyGroup{Network: network, Selects: selects}.Name()
	s.until(port+" is among "+selects, func() (bool, string) {
		dump := s.o.fake.Dump()
		_, rest, _ := strings.Cut("\n"+dump, "\nPort_Group "+group+"\n")
		has := false
		for l := range strings.Lines(rest) {
			if !strings.HasPrefix(l, "  ") {
				break
			}
			has = has || strings.TrimSpace(l) == "has in ports: Logical_Switch_Port "+port
		}
		return has == want, dump
	})
}

// isolated waits until a port is among those that are isolated for ingress, or is not.
func (s *tenancy) isolated(port, network string, want bool) {
	s.t.Helper()
	s.in(port, network, "isolated for ingress", want)
}

func webPolicy(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
				{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}},
			}}},
		},
	}
}

func labelled(p *corev1.Pod, set map[string]string) *corev1.Pod {
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	for k, v := range set {
		p.Labels[k] = v
	}
	return p
}

func (s *tenancy) label(object client.Object, key, value string) {
	s.t.Helper()
	before := object.DeepCopyObject().(client.Object)
	labels := object.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	object.SetLabels(labels)
	if err := s.client.Patch(s.t.Context(), object, client.MergeFrom(before)); err != nil {
		s.t.Fatal(err)
	}
}

func TestPoliciesFollowPods(t *testing.T) {
	s := newTenancy(t)
	s.start()
	shop, office := s.namespace("shop", false), s.namespace("office", false)
	s.create(webPolicy(shop))
	t.Cleanup(func() { _ = s.client.Delete(t.Context(), webPolicy(shop)) })
	web := labelled(podIn(shop, "web", "node-1"), map[string]string{"app": "web"})
	other, client := podIn(shop, "other", "node-1"), podIn(office, "client", "node-2")
	s.create(web, other, client)
	webPort, clientPort, team := topology.PodPort(shop, "web"), topology.PodPort(office, "client"), "all pods of namespaces (team=a)"
	s.isolated(webPort, "", true)
	s.networks(shop, "other")
	s.isolated(topology.PodPort(shop, "other"), "", false)
	s.label(other, "app", "web")
	s.isolated(topology.PodPort(shop, "other"), "", true)

	var namespace corev1.Namespace
	if err := s.client.Get(t.Context(), clientKey("", office), &namespace); err != nil {
		t.Fatal(err)
	}
	s.in(clientPort, "", team, false)
	s.label(&namespace, "team", "a")
	s.in(clientPort, "", team, true)

	s.restart()
	s.isolated(webPort, "", true)
	s.in(clientPort, "", team, true)
	s.hasRow(s.o, "ACL NetworkPolicy/"+shop+"/web/(default)/ingress/0/ip", true)
	s.delete(client)
	s.in(clientPort, "", team, false)
	s.delete(webPolicy(shop))
	s.hasRow(s.o, "ACL NetworkPolicy/"+shop+"/web/(default)/ingress/0/ip", false)
	s.isolated(webPort, "", false)
}

func clientKey(namespace, name string) client.ObjectKey {
	return client.ObjectKey{Namespace: namespace, Name: name}
}

func TestPoliciesOfTenantsMachines(t *testing.T) {
	s := newTenancy(t)
	s.start()
	red := s.namespace("red", true)
	network := "policed-" + red
	s.create(definition(red, "net", network, primaryFields), webPolicy(red))
	vmi := instance(red, "web")
	s.create(vmi)
	web := map[string]string{"app": "web"}
	s.create(labelled(launcher(vmi, "source", "node-1", ""), web))
	port := topology.NICPort(red, vmi.Name, "default")
	s.isolated(port, network, true)
	s.isolated(topology.PodPort(red, "source"), "", false) // its leg is locked anyway
	s.column("ACL isolation/"+network+"/ingress/node", "match: outport == @"+topology.PolicyMember("", network, nil, []netpolicy.Direction{netpolicy.Ingress}).Links[0].Parent.Key+" && (ip4.src == {10.20.0.2} || ip6.src == {fd00:20::2})")
	// It moves: at no time does the port belong to nobody.
	s.status(vmi, virtv1.VirtualMachineInstanceStatus{NodeName: "node-1"})
	s.create(labelled(launcher(vmi, "target", "node-2", "m1"), web))
	s.networks(red, "target")
	s.isolated(port, network, true)
	s.restart()
	s.isolated(port, network, true)
	s.status(vmi, virtv1.VirtualMachineInstanceStatus{NodeName: "node-2", MigrationState: &virtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: "m1", SourceNode: "node-1", TargetNode: "node-2", Completed: true,
	}})
	s.delete(podIn(red, "source", ""))
	s.column("Logical_Switch_Port "+port, `options: hostname="web" ; requested-chassis=node-2`)
	s.isolated(port, network, true)
	s.delete(podIn(red, "target", ""))
	s.hasRow(s.o, "ACL isolation/"+network+"/ingress/drop", false)
	s.delete(webPolicy(red))
}

func multiPolicy(namespace, name, definitions string, peer multiv1beta1.MultiNetworkPolicyPeer) *multiv1beta1.MultiNetworkPolicy {
	p := &multiv1beta1.MultiNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{}},
		Spec:       multiv1beta1.MultiNetworkPolicySpec{Ingress: []multiv1beta1.MultiNetworkPolicyIngressRule{{From: []multiv1beta1.MultiNetworkPolicyPeer{peer}}}},
	}
	if definitions != "" {
		p.Annotations["k8s.v1.cni.cncf.io/policy-for"] = definitions
	}
	return p
}

func TestMultiNetworkPolicies(t *testing.T) {
	s := newTenancy(t)
	s.start()
	shop := s.namespace("shop", false)
	blue, bare := "blue-"+shop, "bare-"+shop
	everyone := multiv1beta1.MultiNetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
	s.create(multiPolicy(shop, "both", "blue, "+shop+"/bare", everyone))
	s.said(shop, "both", "network attachment definition "+shop+"/blue is not there; the policy comes into force with it")
	s.create(definition(shop, "blue", blue, `"topology":"layer2","subnets":"10.100.200.0/24"`), definition(shop, "bare", bare, `"topology":"layer2"`))
	s.create(podIn(shop, "web", "node-1", "k8s.v1.cni.cncf.io/networks", "blue,bare"))
	s.isolated(topology.AttachmentPort(shop+"/blue", shop, "web"), blue, true)
	s.isolated(topology.AttachmentPort(shop+"/bare", shop, "web"), bare, true)
	s.isolated(topology.PodPort(shop, "web"), "", false)
	s.hasRow(s.o, "ACL MultiNetworkPolicy/"+shop+"/both/"+blue+"/ingress/0/ip", true)
	s.said(shop, "both", shop+"/bare gives no addresses, so nobody knows whose an address is and peers there can be given by ipBlock only; "+
		"write the peers as ipBlock, or give the network subnets")
	s.hasRow(s.o, "ACL MultiNetworkPolicy/"+shop+"/both/"+bare+"/ingress/0/ip", false)

	s.create(multiPolicy(shop, "lost", "", everyone), multiPolicy(shop, "block", "bare", multiv1beta1.MultiNetworkPolicyPeer{IPBlock: &multiv1beta1.IPBlock{CIDR: "10.0.0.0/8"}}))
	s.said(shop, "lost", "it is in force nowhere: name the network attachment definitions that it is for in the annotation k8s.v1.cni.cncf.io/policy-for")
	s.hasRow(s.o, "ACL MultiNetworkPolicy/"+shop+"/block/"+bare+"/ingress/0/ip", true)
	s.create(multiPolicy(shop, "typo", "bare", multiv1beta1.MultiNetworkPolicyPeer{IPBlock: &multiv1beta1.IPBlock{CIDR: "10.0.0.0"}}))
	s.said(shop, "typo", `ingress[0].from[0].ipBlock: "10.0.0.0" is not a CIDR`)
	s.restart()
	s.isolated(topology.AttachmentPort(shop+"/bare", shop, "web"), bare, true)
	for _, name := range []string{"both", "lost", "block", "typo"} {
		s.delete(multiPolicy(shop, name, "", everyone))
	}
	s.isolated(topology.AttachmentPort(shop+"/blue", shop, "web"), blue, false)
	s.isolated(topology.AttachmentPort(shop+"/bare", shop, "web"), bare, false)
}
