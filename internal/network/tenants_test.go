package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/ovn"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

// tenancy is a site with namespaces of one test, which vanish from the other tests' sight when it ends.
type tenancy struct {
	*site
	o    *overlay
	kill func()
}

func newTenancy(t *testing.T) *tenancy {
	s := &tenancy{site: newSite(t), o: &overlay{fake: ovn.NewFake()}}
	t.Cleanup(func() {
		ctx := context.Background()
		var namespaces corev1.NamespaceList
		_ = s.client.List(ctx, &namespaces, client.MatchingLabels{"test": "tenancy"})
		for _, ns := range namespaces.Items {
			in := client.InNamespace(ns.Name)
			_ = s.client.DeleteAllOf(ctx, &corev1.Pod{}, in, client.GracePeriodSeconds(0))
			_ = s.client.DeleteAllOf(ctx, &nadv1.NetworkAttachmentDefinition{}, in)
			_ = s.client.DeleteAllOf(ctx, &ipamclaimsv1alpha1.IPAMClaim{}, in)
			_ = s.client.DeleteAllOf(ctx, &virtv1.VirtualMachineInstance{}, in)
		}
	})
	s.create(node("node-1"), node("node-2"))
	return s
}

func (s *tenancy) start() {
	s.t.Helper()
	s.kill = s.site.start(s.o, settings.Default())
}

// restart kills the controllers and the database and starts them anew.
func (s *tenancy) restart() {
	s.t.Helper()
	s.kill()
	s.o.fake.Wipe()
	s.start()
}

// namespace makes a namespace of a name that no other test has.
func (s *tenancy) namespace(name string, tenant bool) string {
	s.t.Helper()
	labels := map[string]string{"test": "tenancy"}
	if tenant {
		labels["k8s.ovn.org/primary-user-defined-network"] = ""
	}
	name = fmt.Sprintf("%s-%x", name, hash(s.t.Name()))
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}})
	return name
}

func hash(text string) (sum uint16) {
	for _, b := range []byte(text) {
		sum = sum*31 + uint16(b)
	}
	return sum
}

func definition(namespace, name, network, fields string) *nadv1.NetworkAttachmentDefinition {
	return &nadv1.NetworkAttachmentDefinition{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: nadv1.NetworkAttachmentDefinitionSpec{Config: fmt.Sprintf(
			`{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":%q,"netAttachDefName":"%s/%s",%s}`, network, namespace, name, fields)},
	}
}

const primaryFields = `"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64","allowPersistentIPs":true`

func podIn(namespace, name, node string, annotations ...string) *corev1.Pod {
	p := pod(name, node)
	p.Namespace, p.Annotations = namespace, map[string]string{}
	for i := 0; i+1 < len(annotations); i += 2 {
		p.Annotations[annotations[i]] = annotations[i+1]
	}
	return p
}

// networks waits for a pod's annotation, and returns its entries.
func (s *tenancy) networks(namespace, name string) map[string]podnetworks.Network {
	s.t.Helper()
	var networks map[string]podnetworks.Network
	s.until("pod "+name+" has addresses", func() (bool, string) {
		var p corev1.Pod
		if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
			return false, err.Error()
		}
		var err error
		networks, err = podnetworks.ParsePod(p.Annotations)
		return err == nil && len(networks) > 0, fmt.Sprint(err, p.Annotations, s.events(namespace))
	})
	return networks
}

func (s *tenancy) events(namespace string) []string {
	var events eventsv1.EventList
	if err := s.client.List(s.t.Context(), &events, client.InNamespace(namespace)); err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, e := range events.Items {
		out = append(out, e.Regarding.Name+" "+e.Reason+" "+e.Note)
	}
	return out
}

// said waits for an event on an object.
func (s *tenancy) said(namespace, name, text string) {
	s.t.Helper()
	s.until(fmt.Sprintf("an event of %s says %q", name, text), func() (bool, string) {
		all := s.events(namespace)
		for _, e := range all {
			if strings.HasPrefix(e, name+" ") && strings.Contains(e, text) {
				return true, ""
			}
		}
		return false, strings.Join(all, "\n")
	})
}

func ips(n podnetworks.Network) string {
	var out []string
	for _, ip := range n.IPs {
		out = append(out, ip.String())
	}
	return strings.Join(out, " ")
}

// column waits until a row has a line.
func (s *tenancy) column(row, line string) {
	s.t.Helper()
	s.until(fmt.Sprintf("row %q has %q", row, line), func() (bool, string) {
		dump := s.o.fake.Dump()
		_, rest, found := strings.Cut("\n"+dump, "\n"+row+"\n")
		for l := range strings.Lines(rest) {
			if !strings.HasPrefix(l, "  ") {
				break
			}
			if strings.TrimSpace(l) == line {
				return true, ""
			}
		}
		return false, fmt.Sprintf("found: %v\n%s", found, dump)
	})
}

func TestPodsOfATenant(t *testing.T) {
	s := newTenancy(t)
	s.start()
	red := s.namespace("red", true)
	waits := podIn(red, "waits", "node-1")
	s.create(waits)
	s.said(red, "waits", "has the label k8s.ovn.org/primary-user-defined-network but no primary network")
	s.create(definition(red, "net", "red_net", primaryFields))

	n := s.networks(red, "waits")
	own := n[red+"/net"]
	if got := ips(own); got != "10.20.0.3/16 fd00:20::3/64" || own.Role != podnetworks.Primary || own.Interface != "ovn-udn1" || own.Tap ||
		own.MAC.String() != "0a:58:0a:14:00:03" || fmt.Sprint(own.Gateways) != "[10.20.0.1 fd00:20::1]" || own.Name != "red_net" || own.MTU != 1400 ||
		own.LinkLocalGateway.String() != "fe80::858:aff:fe14:1" || len(own.Routes) != 2 {
		t.Errorf("the primary network is %+v", own)
	}
	leg := n[podnetworks.Default]
	if leg.Role != podnetworks.InfrastructureLocal || len(leg.Gateways) > 0 || len(leg.IPs) != 2 || fmt.Sprint(leg.Routes) !=
		"[{10.128.0.0/14 10.128.0.1} {100.64.0.0/16 10.128.0.1} {fd00:10:128::/48 fd00:10:128::1} {fd98::/64 fd00:10:128::1}]" && leg.IPs[0].Addr().As4()[2] == 0 {
		t.Errorf("the default network is %+v", leg)
	}
	s.column("Logical_Switch_Port "+own.Port, "addresses: 0a:58:0a:14:00:03 10.20.0.3 fd00:20::3")
	s.hasRow(s.o, "Logical_Router router/red_net", true)

	var d nadv1.NetworkAttachmentDefinition
	s.until("the definition carries the network's number", func() (bool, string) {
		err := s.client.Get(t.Context(), client.ObjectKey{Namespace: red, Name: "net"}, &d)
		return err == nil && d.Annotations["k8s.ovn.org/network-name"] == "red_net" && d.Annotations["k8s.ovn.org/network-id"] != "", fmt.Sprint(d.Annotations)
	})
	s.create(definition(red, "second", "red_second", strings.Replace(primaryFields, "10.20", "10.21", 1)))
	s.create(podIn(red, "torn", "node-1"))
	s.said(red, "torn", "has several primary networks")
	s.delete(definition(red, "second", "", ""))
	s.networks(red, "torn")

	s.restart()
	s.create(podIn(red, "late", "node-2"))
	if got := ips(s.networks(red, "late")[red+"/net"]); got != "10.20.0.5/16 fd00:20::5/64" {
		t.Errorf("a pod after the restart has %s", got)
	}
	if got := s.networks(red, "waits"); ips(got[red+"/net"]) != ips(own) {
		t.Errorf("the pod had %s and has %s", ips(own), ips(got[red+"/net"]))
	}
	s.hasRow(s.o, "Logical_Switch_Port "+own.Port, true)
	s.delete(waits)
	s.hasRow(s.o, "Logical_Switch_Port "+own.Port, false)
}

func TestSecondaryNetworks(t *testing.T) {
	s := newTenancy(t)
	s.start()
	blue := s.namespace("blue", false)
	other := s.namespace("other", false)
	s.create(
		definition(blue, "l2", "blue", `"topology":"layer2","subnets":"10.100.200.0/29","excludeSubnets":"10.100.200.1/32"`),
		definition(other, "l2", "blue", `"topology":"layer2","subnets":"10.100.200.0/29","excludeSubnets":"10.100.200.1/32"`),
		definition(blue, "bare", "bare", `"topology":"layer2","mtu":1300`),
		&nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: blue, Name: "bridge"}, Spec: nadv1.NetworkAttachmentDefinitionSpec{Config: `{"type":"bridge"}`}},
	)
	s.create(podIn(blue, "many", "node-1", "k8s.v1.cni.cncf.io/networks",
		`[{"name":"l2"},{"name":"bridge"},{"name":"bare","mac":"02:00:00:00:00:11","ips":["192.168.5.5/24"],"interface":"data0"},{"name":"bare"}]`))
	n := s.networks(blue, "many")
	if len(n) != 4 || n[podnetworks.Default].Role != podnetworks.Primary || len(n[podnetworks.Default].Gateways) != 2 {
		t.Errorf("the pod has %+v", n)
	}
	if e := n[blue+"/l2"]; ips(e) != "10.100.200.2/29" || e.Interface != "net1" || len(e.Gateways) > 0 || e.Role != podnetworks.Secondary {
		t.Errorf("l2 is %+v", e)
	}
	if e := n[blue+"/bare"]; ips(e) != "192.168.5.5/24" || e.Interface != "data0" || e.MAC.String() != "02:00:00:00:00:11" || e.MTU != 1300 {
		t.Errorf("bare is %+v", e)
	} else {
		s.column("Logical_Switch_Port "+e.Port, "port_security: 02:00:00:00:00:11 ; 02:00:00:00:00:11 0.0.0.0/0 ::/0")
	}
	if e := n[blue+"/bare/1"]; ips(e) != "" || e.Interface != "net4" || e.MAC == nil {
		t.Errorf("bare again is %+v", e)
	}
	// The same network by a definition of another namespace, until it is full.
	for _, name := range []string{"a", "b", "c", "d"} {
		s.create(podIn(other, name, "node-2", "k8s.v1.cni.cncf.io/networks", "l2@blue0"))
		s.networks(other, name)
	}
	s.create(podIn(other, "full", "node-2", "k8s.v1.cni.cncf.io/networks", blue+"/l2"))
	s.said(other, "full", "subnet address pool exhausted")
	s.delete(podIn(other, "c", ""))
	if got := ips(s.networks(other, "full")[blue+"/l2"]); got != "10.100.200.5/29" {
		t.Errorf("the pod that waited has %s", got)
	}
	// Hot plug and unplug.
	var many corev1.Pod
	if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: blue, Name: "many"}, &many); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Patch(t.Context(), &many, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":"bare@data0"}}}`))); err != nil {
		t.Fatal(err)
	}
	s.until("the removed interfaces are gone", func() (bool, string) {
		n := s.networks(blue, "many")
		return len(n) == 2 && n[blue+"/bare"].MAC.String() == "02:00:00:00:00:11", fmt.Sprint(n)
	})
	s.hasRow(s.o, "Logical_Switch_Port "+n[blue+"/l2"].Port, false)
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	s := newTenancy(t)
	s.start()
	ns := s.namespace("wrong", false)
	s.create(
		definition(ns, "odd", "odd", `"topology":"ring"`),
		&nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "typo"}, Spec: nadv1.NetworkAttachmentDefinitionSpec{Config: `{"type":`}},
		definition(ns, "cluster", "cluster", `"topology":"layer2","subnets":"10.128.0.0/16"`),
		definition(ns, "one", "shared", `"topology":"layer2"`),
		definition(ns, "primary", "primary", primaryFields),
	)
	s.said(ns, "odd", `topology "ring" is not known`)
	s.said(ns, "typo", "spec.config is not a CNI configuration in JSON")
	s.said(ns, "cluster", `subnet "10.128.0.0/16" overlaps cluster subnet "10.128.0.0/14"`)
	s.hasRow(s.o, "Logical_Switch switch/shared", true)
	s.create(definition(ns, "two", "shared", `"topology":"layer2","mtu":1300`))
	s.said(ns, "two", fmt.Sprintf("NAD %s/two CNI config does not match that of network shared", ns))
	for networks, want := range map[string]string{
		"nowhere": "network attachment definition " + ns + "/nowhere does not exist",
		"odd":     "cannot be used",
		"two":     "does not match that of network shared",
		"primary": `unexpected primary network "primary" specified with a NetworkSelectionElement`,
		"[{":      "is not a list of networks in JSON",
		`[{"name":"one","mac":"33:33:00:00:00:01"}]`: "requested MAC address",
	} {
		name := fmt.Sprintf("pod-%x", hash(networks))
		s.create(podIn(ns, name, "node-1", "k8s.v1.cni.cncf.io/networks", networks))
		s.said(ns, name, want)
	}
	// The first definition goes, and the second has its turn.
	s.delete(definition(ns, "one", "", ""))
	s.networks(ns, fmt.Sprintf("pod-%x", hash("two")))
}

// instance is a machine with one interface on its primary network.
func instance(namespace, name string) *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	vmi.Spec.Networks = []virtv1.Network{{Name: "default", NetworkSource: virtv1.NetworkSource{Pod: &virtv1.PodNetwork{}}}}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{{Name: "default", Binding: &virtv1.PluginBinding{Name: "l2bridge"}}}
	return vmi
}

func launcher(vmi *virtv1.VirtualMachineInstance, name, node, migration string, annotations ...string) *corev1.Pod {
	p := podIn(vmi.Namespace, name, node, annotations...)
	p.Labels = map[string]string{"kubevirt.io": "virt-launcher"}
	if migration != "" {
		p.Labels["kubevirt.io/migrationJobUID"] = migration
	}
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(vmi, virtv1.VirtualMachineInstanceGroupVersionKind)}
	return p
}

func TestAMachineMoves(t *testing.T) {
	s := newTenancy(t)
	s.start()
	red := s.namespace("moves", true)
	s.create(definition(red, "net", "moves_net", primaryFields))
	vmi := instance(red, "web")
	s.create(vmi)
	s.create(launcher(vmi, "source", "node-1", ""))
	first := s.networks(red, "source")[red+"/net"]
	if !first.Tap || first.Port != "vm/"+red+"/web/default" || ips(first) != "10.20.0.3/16 fd00:20::3/64" {
		t.Errorf("the machine's interface is %+v", first)
	}
	row := "Logical_Switch_Port " + first.Port
	s.column(row, `options: hostname="web" ; requested-chassis=node-1`)
	s.status(vmi, virtv1.VirtualMachineInstanceStatus{NodeName: "node-1"})
	s.create(launcher(vmi, "target", "node-2", "m1"))
	if second := s.networks(red, "target")[red+"/net"]; ips(second) != ips(first) || second.Port != first.Port || second.MAC.String() != first.MAC.String() {
		t.Errorf("the machine is %+v in one pod and %+v in the other", first, second)
	}
	s.column(row, `options: activation-strategy=rarp ; hostname="web" ; requested-chassis=node-1,node-2`)
	s.restart()
	s.column(row, `options: activation-strategy=rarp ; hostname="web" ; requested-chassis=node-1,node-2`)
	s.status(vmi, virtv1.VirtualMachineInstanceStatus{NodeName: "node-2", MigrationState: &virtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: "m1", SourceNode: "node-1", TargetNode: "node-2", Completed: true,
	}})
	s.column(row, `options: hostname="web" ; requested-chassis=node-2`)
	s.delete(podIn(red, "source", ""))
	s.create(podIn(red, "other", "node-1"))
	if got := ips(s.networks(red, "other")[red+"/net"]); got != "10.20.0.4/16 fd00:20::4/64" {
		t.Errorf("another pod has %s", got)
	}
	s.column(row, "addresses: 0a:58:0a:14:00:03 10.20.0.3 fd00:20::3")
	s.delete(podIn(red, "target", ""))
	s.hasRow(s.o, row, false)
}

// status writes a machine's status; the test's kind has it as a part of the object.
func (s *tenancy) status(vmi *virtv1.VirtualMachineInstance, status virtv1.VirtualMachineInstanceStatus) {
	s.t.Helper()
	vmi.Status = status
	if err := s.client.Update(s.t.Context(), vmi); err != nil {
		s.t.Fatal(err)
	}
}

func TestClaimsKeepAddresses(t *testing.T) {
	s := newTenancy(t)
	s.start()
	red := s.namespace("claims", true)
	s.create(definition(red, "net", "claims_net", primaryFields))
	claim := &ipamclaimsv1alpha1.IPAMClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: red, Name: "web.default"}, Spec: ipamclaimsv1alpha1.IPAMClaimSpec{Network: "claims_net"},
	}
	request := []string{"v1.multus-cni.io/default-network", `[{"name":"default","namespace":"ovn-kubernetes","ipam-claim-reference":"web.default"}]`}
	vmi := instance(red, "web")
	s.create(vmi)
	s.create(launcher(vmi, "one", "node-1", "", request...))
	s.said(red, "one", "IPAMClaim "+red+"/web.default does not exist")
	s.create(claim)
	had := s.networks(red, "one")[red+"/net"]
	read := func() *ipamclaimsv1alpha1.IPAMClaim {
		c := &ipamclaimsv1alpha1.IPAMClaim{}
		if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(claim), c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := read(); strings.Join(c.Status.IPs, " ") != ips(had) || c.Status.OwnerPod == nil || c.Status.OwnerPod.Name != "one" ||
		!meta.IsStatusConditionTrue(c.Status.Conditions, "IPsAllocated") {
		t.Errorf("the claim's status is %+v, the pod has %s", c.Status, ips(had))
	}
	s.until("the claim says the MAC", func() (bool, string) {
		mac := read().Annotations["patchbay.io/mac-address"]
		return mac == had.MAC.String(), mac
	})
	// The machine stops; others come; the controllers are killed; it starts again.
	s.delete(podIn(red, "one", ""))
	s.delete(vmi)
	s.restart()
	s.create(podIn(red, "greedy", "node-1", "v1.multus-cni.io/default-network", `[{"name":"default","namespace":"ovn-kubernetes","mac":"`+had.MAC.String()+`"}]`))
	s.said(red, "greedy", "MAC address already in use")
	s.delete(podIn(red, "greedy", ""))
	for i := range 3 {
		s.create(podIn(red, fmt.Sprint("other-", i), "node-1"))
		if got := ips(s.networks(red, fmt.Sprint("other-", i))[red+"/net"]); got == ips(had) {
			t.Errorf("a pod has %s, which a claim keeps", got)
		}
	}
	again := instance(red, "web")
	s.create(again)
	s.create(launcher(again, "two", "node-2", "", request...))
	if got := s.networks(red, "two")[red+"/net"]; ips(got) != ips(had) || got.MAC.String() != had.MAC.String() {
		t.Errorf("the machine had %s and has %s", ips(had), ips(got))
	}
	s.column("Logical_Switch_Port "+had.Port, `options: hostname="web" ; requested-chassis=node-2`)

	// Wished addresses, also one that is taken.
	wish := func(name, ip4 string) *corev1.Pod {
		return podIn(red, name, "node-1", "v1.multus-cni.io/default-network",
			fmt.Sprintf(`[{"name":"default","namespace":"ovn-kubernetes","mac":"02:03:04:05:06:%02x","ips":["%s/16","fd00:20::%x/64"]}]`, hash(name)%256, ip4, hash(name)))
	}
	s.create(wish("wished", "10.20.7.7"), wish("thief", netip.MustParsePrefix(strings.Fields(ips(had))[0]).Addr().String()))
	if got := s.networks(red, "wished")[red+"/net"]; !strings.HasPrefix(ips(got), "10.20.7.7/16 ") || got.MAC[0] != 2 {
		t.Errorf("the wish became %+v", got)
	}
	s.said(red, "thief", "provided IP is already allocated")
	// With the claim and the machine the addresses are free.
	s.delete(claim)
	s.delete(podIn(red, "two", ""))
	if got := ips(s.networks(red, "thief")[red+"/net"]); !strings.HasPrefix(got, strings.Fields(ips(had))[0]) {
		t.Errorf("the pod that waited has %s", got)
	}
}

// TestANetworkComesBack: its definition is deleted and made again while pods run on it.
func TestANetworkComesBack(t *testing.T) {
	s := newTenancy(t)
	s.start()
	ns := s.namespace("back", false)
	again := func() *nadv1.NetworkAttachmentDefinition {
		return definition(ns, "l2", "comes-back", `"topology":"layer2","subnets":"10.100.210.0/24"`)
	}
	s.create(again(), podIn(ns, "old", "node-1", "k8s.v1.cni.cncf.io/networks", "l2"))
	old := s.networks(ns, "old")[ns+"/l2"]
	s.delete(again())
	s.until("the controllers know that it is gone", func() (bool, string) { return s.last.tenants.ownerless("comes-back"), "" })
	s.create(podIn(ns, "waits", "node-1", "k8s.v1.cni.cncf.io/networks", "l2"))
	s.said(ns, "waits", "does not exist")
	s.hasRow(s.o, "Logical_Switch_Port "+old.Port, true)
	s.restart() // nobody means the network now, only the pod's annotation does
	s.create(again())
	if got := ips(s.networks(ns, "waits")[ns+"/l2"]); got == ips(old) || got == "" {
		t.Errorf("the new pod has %s, the old one %s", got, ips(old))
	}
	if got := s.networks(ns, "old")[ns+"/l2"]; ips(got) != ips(old) {
		t.Errorf("the pod had %s and has %s", ips(old), ips(got))
	}
	s.hasRow(s.o, "Logical_Switch_Port "+old.Port, true)
	s.delete(again())
	s.delete(podIn(ns, "old", ""))
	s.hasRow(s.o, "Logical_Switch_Port "+old.Port, false)
	if !s.last.Running("comes-back") {
		t.Error("the network is gone though a pod is on it")
	}
	s.delete(podIn(ns, "waits", ""))
	s.until("the network is gone", func() (bool, string) { return !s.last.Running("comes-back"), s.o.fake.Dump() })
	if dump := s.o.fake.Dump(); strings.Contains(dump, "comes-back") {
		t.Errorf("the network is gone and the overlay has\n%s", dump)
	}
}
