package network

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/podnetworks"
)

const layer3Fields = `"topology":"layer3","role":"primary","subnets":"10.30.0.0/23/24,10.40.0.0/24/25,fd00:30::/48"`

// slice waits until a node's annotation says what it has of a network; "" is nothing.
func (s *tenancy) slice(node, network, want string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s has %q of %s", node, want, network), func() (bool, string) {
		var n corev1.Node
		if err := s.client.Get(s.t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
			return false, err.Error()
		}
		networks, err := podnetworks.ParseNode(n.Annotations)
		return err == nil && strings.TrimSpace(formatSlices(networks[network])) == want && len(networks[podnetworks.Default]) == 2, fmt.Sprint(err, n.Annotations)
	})
}

func routes(n podnetworks.Network) string {
	var out []string
	for _, r := range n.Routes {
		out = append(out, r.Dest.String()+" via "+r.NextHop.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// The slices of two nodes: whose they are, what pods have of them, and that both outlive the controllers.
func TestLayer3Primary(t *testing.T) {
	s := newTenancy(t)
	s.start()
	green := s.namespace("green", true)
	name := green + "_l3"
	s.create(definition(green, "l3", name, layer3Fields), podIn(green, "a", "node-1"), podIn(green, "b", "node-2"))
	slicesBefore := map[string]string{}
	for pod, node := range map[string]string{"a": "node-1", "b": "node-2"} {
		own := s.networks(green, pod)[green+"/l3"]
		at := own.IPs[0].Addr().As4()[2]
		gateways := []string{fmt.Sprintf("10.30.%d.1", at), podnetworks.Gateway(own.IPs[1]).String()}
		if fmt.Sprint(own.Gateways) != fmt.Sprint(gateways) || own.IPs[0].Bits() != 24 || own.IPs[1].Bits() != 64 || own.IPs[0].Addr().As4()[3] != 3 ||
			own.Role != podnetworks.Primary || own.Interface != "ovn-udn1" || own.Tap {
			t.Errorf("pod %s on %s has %+v", pod, node, own)
		}
		want := strings.NewReplacer("G4", gateways[0], "G6", gateways[1]).Replace("10.30.0.0/23 via G4, 10.40.0.0/24 via G4, 10.96.0.0/16 via G4, fd00:10:96::/112 via G6, fd00:30::/48 via G6")
		if got := routes(own); got != want {
			t.Errorf("pod %s has routes %s, want %s", pod, got, want)
		}
		slicesBefore[node] = own.IPs[0].Masked().String() + "," + own.IPs[1].Masked().String()
		s.slice(node, name, slicesBefore[node])
		s.hasRow(s.o, "Logical_Switch switch/"+name+"_"+node, true)
		s.column("Logical_Switch switch/"+name+"_"+node, "has in ports: Logical_Switch_Port "+own.Port)
		s.column("Logical_Switch_Port "+own.Port, "options: iface-id-ver="+string(s.uid(green, pod))+" ; requested-chassis="+node)
	}
	if slicesBefore["node-1"] == slicesBefore["node-2"] {
		t.Fatalf("both nodes have %s", slicesBefore["node-1"])
	}
	s.hasRow(s.o, "NAT gateway/"+name+"/ip4", true)
	s.hasRow(s.o, "ACL lost-service/switch/"+name+"_node-2/refuse/ip4", true)

	s.restart()
	s.create(podIn(green, "late", "node-2"))
	if got := ips(s.networks(green, "late")[green+"/l3"]); !strings.HasSuffix(got, "::4/64") {
		t.Errorf("a pod after the restart has %s", got)
	}
	s.slice("node-1", name, slicesBefore["node-1"])

	local, endpoints := serviceIn(green)
	policy := corev1.ServiceInternalTrafficPolicyLocal
	local.Spec.InternalTrafficPolicy = &policy
	endpoints.Endpoints[0].TargetRef.Name, endpoints.Endpoints[0].NodeName = "a", ptr("node-1")
	s.create(local, endpoints)
	balancer := "Load_Balancer Service_" + green + "/web_TCP_node_switch_"
	s.column("Logical_Switch switch/"+name+"_node-1", "has in load_balancer: "+balancer+"node-1")
	s.hasRow(s.o, balancer+"node-2", true)

	// A third node gets a slice of the second range, and no node can have a fifth: its pods wait, those on other networks do not.
	s.create(node("node-3"), podIn(green, "c", "node-3"))
	if got := s.networks(green, "c")[green+"/l3"]; got.IPs[0].String() != "10.40.0.3/25" || got.Gateways[0].String() != "10.40.0.1" {
		t.Errorf("a pod of the third node has %+v", got)
	}
	s.hasRow(s.o, "ACL lost-service/switch/"+name+"_node-3/refuse/ip4", true)
	s.hasRow(s.o, balancer+"node-3", true)
	s.create(node("node-4"))
	s.slice("node-4", name, s.sliceOf(green, "d", "node-4"))
	s.create(node("node-5"), podIn(green, "e", "node-5"), pod("plain", "node-5"))
	s.said(green, "e", "the node has no subnets of the network yet")
	s.network("plain")

	// A node that goes leaves its slice to the one that waits.
	s.delete(podIn(green, "c", ""))
	s.delete(node("node-3"))
	s.hasRow(s.o, "Logical_Switch switch/"+name+"_node-3", false)
	s.hasRow(s.o, balancer+"node-3", false)
	if got := s.networks(green, "e")[green+"/l3"]; got.IPs[0].String() != "10.40.0.3/25" {
		t.Errorf("the pod that waited has %+v", got)
	}

	// A further range makes room while the network is in use.
	s.create(node("node-6"), podIn(green, "f", "node-6"))
	s.said(green, "f", "the node has no subnets of the network yet")
	larger := definition(green, "l3", name, strings.Replace(layer3Fields, "fd00", "10.60.0.0/24/25,fd00", 1))
	var d nadv1.NetworkAttachmentDefinition
	if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(larger), &d); err != nil {
		t.Fatal(err)
	}
	d.Spec.Config = larger.Spec.Config
	if err := s.client.Update(t.Context(), &d); err != nil {
		t.Fatal(err)
	}
	if got := s.networks(green, "f")[green+"/l3"]; got.IPs[0].String() != "10.60.0.3/25" {
		t.Errorf("the pod that waited for a further range has %+v", got)
	}
	s.slice("node-1", name, slicesBefore["node-1"])
	s.hasRow(s.o, "NAT gateway/"+name+"/ip4/10.60.0.0/24", true)
}

func TestLayer3Secondary(t *testing.T) {
	s := newTenancy(t)
	s.start()
	side := s.namespace("side", false)
	name := side + "_net"
	s.create(definition(side, "net", name, `"topology":"layer3","subnets":"10.50.0.0/16/24"`))
	a := podIn(side, "a", "node-1", "k8s.v1.cni.cncf.io/networks", "net")
	s.create(a)
	own := s.networks(side, "a")[side+"/net"]
	if own.Role != podnetworks.Secondary || len(own.Gateways) > 0 || own.IPs[0].Bits() != 24 || routes(own) != "10.50.0.0/16 via "+podnetworks.Gateway(own.IPs[0]).String() {
		t.Errorf("the pod has %+v", own)
	}
	s.hasRow(s.o, "Logical_Router router/"+name, true)
	s.hasRow(s.o, "Logical_Router_Port gateway/"+name, false)

	// Nothing of the network stays.
	s.delete(a)
	s.delete(definition(side, "net", "", ""))
	s.hasRow(s.o, "Logical_Router router/"+name, false)
	s.slice("node-1", name, "")
	s.until("the ledger is gone", func() (bool, string) {
		err := s.client.Get(t.Context(), client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: ledgerOf(name)}, &corev1.ConfigMap{})
		return apierrors.IsNotFound(err), fmt.Sprint(err)
	})
}

func (s *tenancy) uid(namespace, name string) string {
	s.t.Helper()
	var p corev1.Pod
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
		s.t.Fatal(err)
	}
	return string(p.UID)
}

// sliceOf is a node's slices by what a pod there has.
func (s *tenancy) sliceOf(namespace, name, node string) string {
	s.t.Helper()
	s.create(podIn(namespace, name, node))
	for key, n := range s.networks(namespace, name) {
		if key != podnetworks.Default {
			return n.IPs[0].Masked().String() + "," + n.IPs[1].Masked().String()
		}
	}
	s.t.Fatal("the pod is on no other network")
	return ""
}
