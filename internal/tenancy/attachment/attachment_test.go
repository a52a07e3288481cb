package attachment

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

func TestClaimName(t *testing.T) {
	for _, test := range []struct{ machine, network, want string }{
		{"vm1", "default", "vm1.default"},
		{"vm1", "Blue_Net", "vm1.blue.net"},
		{"vm1", "-odd-", "vm1.odd"},
		{"web.example", "pod", "web.example.pod"},
		{strings.Repeat("a", 250), "default", strings.Repeat("a", 250) + ".de"},
		{strings.Repeat("a", 252), "default", strings.Repeat("a", 252)},
	} {
		got := ClaimName(test.machine, test.network)
		if got != test.want || len(validation.IsDNS1123Subdomain(got)) > 0 {
			t.Errorf("claim of %s on %s is %s, want %s", test.machine, test.network, got, test.want)
		}
	}
}

func subnets(texts ...string) (list []netconf.Subnet) {
	for _, text := range texts {
		list = append(list, netconf.Subnet{CIDR: netip.MustParsePrefix(text)})
	}
	return list
}

var (
	tenant = netconf.Network{Name: "red_net", Topology: netconf.Layer2, Role: podnetworks.Primary, Subnets: subnets("10.20.0.0/16", "fd00:20::/64"), Persistent: true}
	blue   = netconf.Network{Name: "blue", Topology: netconf.Layer2, Role: podnetworks.Secondary, Subnets: subnets("10.30.0.0/24"), Persistent: true}
	plain  = netconf.Network{Name: "plain", Topology: netconf.Layer2, Role: podnetworks.Secondary}
)

// instance is in namespace red, with a NIC on each named network; "pod" is the pod network.
func instance(annotations map[string]string, networks ...string) *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "vm1", UID: "u1", Annotations: annotations}}
	for _, name := range networks {
		n := virtv1.Network{Name: name}
		if name == "pod" {
			n.Pod = &virtv1.PodNetwork{}
		} else {
			n.Multus = &virtv1.MultusNetwork{NetworkName: name}
		}
		vmi.Spec.Networks = append(vmi.Spec.Networks, n)
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, virtv1.Interface{Name: name})
	}
	return vmi
}

func facts(tenanted bool, claims ...*ipamclaimsv1alpha1.IPAMClaim) Facts {
	f := Facts{
		Tenant:      tenanted,
		Definitions: map[string]netconf.Network{"red/net": tenant, "red/blue": blue, "red/plain": plain, "other/net": tenant},
		Claims:      map[string]*ipamclaimsv1alpha1.IPAMClaim{},
	}
	for _, c := range claims {
		f.Claims[c.Name] = c
	}
	return f
}

func claimOf(vmi *virtv1.VirtualMachineInstance, name string, n netconf.Network) *ipamclaimsv1alpha1.IPAMClaim {
	return Claim(vmi, Attachment{Name: name, Network: n})
}

func wishing(text string) map[string]string { return map[string]string{AddressesAnnotation: text} }

func TestRequests(t *testing.T) {
	both := instance(nil, "pod", "blue", "plain", "elsewhere")
	other := instance(nil, "pod")
	other.UID = "u2"
	noPrimary := facts(true)
	delete(noPrimary.Definitions, "red/net")
	twoPrimaries := facts(true)
	twoPrimaries.Definitions["red/second"] = tenant
	for _, test := range []struct {
		name  string
		facts Facts
		vmi   *virtv1.VirtualMachineInstance
		want  map[string]Request
		err   string
	}{
		{"namespace without label", facts(false), instance(nil, "pod"), map[string]Request{}, ""},
		{"all kinds", facts(true, claimOf(both, "pod", tenant), claimOf(both, "blue", blue)), both, map[string]Request{
			"pod": {Claim: "vm1.pod", Primary: true}, "blue": {Claim: "vm1.blue"}, "plain": {},
		}, ""},
		{"claim not made yet", facts(true), instance(nil, "pod"), nil, "IPAMClaim red/vm1.pod is awaited"},
		{"claim of another network", facts(true, claimOf(other, "pod", blue)), other, nil, "IPAMClaim red/vm1.pod is awaited"},
		{"claim of another machine", facts(true, claimOf(other, "pod", tenant)), instance(nil, "pod"), nil,
			`failed since it found an existing IPAMClaim for "vm1.pod"`},
		{"no primary network", noPrimary, instance(nil, "pod"), nil, "namespace red has the label k8s.ovn.org/primary-user-defined-network " +
			"and no primary network yet; create a UserDefinedNetwork in it, or a ClusterUserDefinedNetwork that selects it"},
		{"two primary networks", twoPrimaries, instance(nil, "pod"), nil, "namespace red has 2 primary networks; leave one"},
		{"wished addresses", facts(true, claimOf(both, "pod", tenant)), instance(wishing(`{"pod":["fd00:20::100","10.20.0.100"]}`), "pod"),
			map[string]Request{"pod": {Claim: "vm1.pod", Primary: true, Addresses: []netip.Prefix{
				netip.MustParsePrefix("10.20.0.100/16"), netip.MustParsePrefix("fd00:20::100/64")}}}, ""},
		{"one family wished", facts(true, claimOf(both, "pod", tenant)), instance(wishing(`{"pod":["10.20.0.100"]}`), "pod"), nil,
			"requested IPs family types must match network's IP family configuration"},
		{"wish outside", facts(true, claimOf(both, "pod", tenant)), instance(wishing(`{"pod":["10.21.0.1","fd00:20::1"]}`), "pod"), nil,
			"annotation network.kubevirt.io/addresses: interface pod: 10.21.0.1 is not in the network's subnet 10.20.0.0/16"},
		{"wish on a secondary network", facts(true, claimOf(both, "blue", blue)), instance(wishing(`{"blue":["10.30.0.9"]}`), "blue"), nil,
			"annotation network.kubevirt.io/addresses: interface blue: static addresses are only supported on primary networks"},
		{"no JSON", facts(true), instance(wishing(`10.20.0.1`), "pod"), nil,
			`annotation network.kubevirt.io/addresses is not a JSON object of lists, such as {"default": ["10.20.0.100"]}: invalid character '.' after top-level value`},
		{"no address", facts(true), instance(wishing(`{"pod":["ten"]}`), "pod"), nil,
			`annotation network.kubevirt.io/addresses: interface pod: "ten" is not an IP address`},
		{"user's own annotation", facts(true, claimOf(both, "pod", tenant)), instance(map[string]string{DefaultNetworkAnnotation: "[]"}, "pod"), nil,
			"annotation v1.multus-cni.io/default-network must not be set on virtual machines in a namespace with a primary user-defined network; " +
				"wish addresses with annotation network.kubevirt.io/addresses and a MAC with the interface's macAddress"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.facts.Requests(test.vmi)
			if said := text(err); said != test.err {
				t.Errorf("error %q\nwant  %q", said, test.err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestClaim(t *testing.T) {
	vmi := instance(nil, "pod")
	c := Claim(vmi, Attachment{Name: "pod", Network: tenant})
	if c.Name != "vm1.pod" || c.Spec.Network != "red_net" || c.Spec.Interface != "" || c.Labels[ClaimLabel] != "vm1" || c.Finalizers[0] != ClaimFinalizer {
		t.Errorf("%+v", c)
	}
	if o := c.OwnerReferences[0]; o.Kind != "VirtualMachineInstance" || o.UID != "u1" || !*o.Controller || !*o.BlockOwnerDeletion {
		t.Errorf("a bare instance's claim belongs to %+v", o)
	}
	vm := &virtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Name: "vm1", UID: "m1"}}
	vmi.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(vm, virtv1.VirtualMachineGroupVersionKind)}
	if o := Claim(vmi, Attachment{Name: "pod", Network: tenant}).OwnerReferences[0]; o.Kind != "VirtualMachine" || o.UID != "m1" {
		t.Errorf("a machine's claim belongs to %+v", o)
	}
}
