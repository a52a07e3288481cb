package attach

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/network/catalog"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

// networks are the networks of these tests.
func networks(t *testing.T) *catalog.Catalog {
	t.Helper()
	c := catalog.New(settings.Default(), func(string) bool { return false })
	for key, fields := range map[string]string{
		"red/net":  `"name":"red_net","topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64","allowPersistentIPs":true`,
		"blue/net": `"name":"blue_net","topology":"layer3","role":"primary","subnets":"10.30.0.0/16"`,
		"two/a":    `"name":"two_a","topology":"layer2","role":"primary","subnets":"10.20.0.0/16"`,
		"two/b":    `"name":"two_b","topology":"layer2","role":"primary","subnets":"10.20.0.0/16"`,
		"red/l2":   `"name":"l2","topology":"layer2","subnets":"10.100.200.0/24","allowPersistentIPs":true`,
		"other/l2": `"name":"l2","topology":"layer2","subnets":"10.100.200.0/24","allowPersistentIPs":true`,
		"red/bare": `"name":"bare","topology":"layer2"`,
		"red/l3":   `"name":"l3","topology":"layer3","subnets":"10.40.0.0/16"`,
		"red/odd":  `"name":"odd","topology":"ring"`,
		"red/a-b":  `"name":"a-b","topology":"layer2"`,
		"red/a.b":  `"name":"a.b","topology":"layer2"`,
	} {
		c.Put(key, fmt.Sprintf(`{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","netAttachDefName":%q,%s}`, key, fields), 0, "")
	}
	c.Put("system/default", `{"type":"ovn-k8s-cni-overlay","name":"ovn-kubernetes"}`, 0, "")
	c.Put("red/bridge", `{"type":"bridge"}`, 0, "")
	return c
}

func pod(namespace string, annotations ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p", UID: "u", Annotations: map[string]string{}}}
	for i := 0; i+1 < len(annotations); i += 2 {
		p.Annotations[annotations[i]] = annotations[i+1]
	}
	return p
}

// machine has an interface on the pod network and one on red/bare.
func machine(change ...func(*virtv1.VirtualMachineInstance)) *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "vm", UID: "m", Annotations: map[string]string{}}}
	vmi.Spec.Networks = []virtv1.Network{
		{Name: "default", NetworkSource: virtv1.NetworkSource{Pod: &virtv1.PodNetwork{}}},
		{Name: "data", NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "bare"}}},
	}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{
		{Name: "default", Binding: &virtv1.PluginBinding{Name: "l2bridge"}, MacAddress: "02:00:00:00:00:01"},
		{Name: "data", InterfaceBindingMethod: virtv1.InterfaceBindingMethod{Bridge: &virtv1.InterfaceBridge{}}},
	}
	for _, c := range change {
		c(vmi)
	}
	return vmi
}

const (
	multus  = "k8s.v1.cni.cncf.io/networks"
	request = "v1.multus-cni.io/default-network"
)

// line says a wish in one line.
func line(w Wish) string {
	parts := []string{w.Key, "on", w.Network, "as", w.Interface, string(w.Role)}
	for name, value := range map[string]any{"nic": w.NIC, "claim": w.Claim} {
		if value != "" {
			parts = append(parts, fmt.Sprint(name, "=", value))
		}
	}
	for _, list := range []any{w.IPs, w.Static, w.Gateways} {
		if text := fmt.Sprint(list); text != "[]" {
			parts = append(parts, text)
		}
	}
	if w.MAC != nil {
		parts = append(parts, w.MAC.String())
	}
	return strings.Join(parts, " ")
}

func TestPlan(t *testing.T) {
	data := podnetworks.InterfaceName("data")
	onData := fmt.Sprintf(`[{"name":"bare","interface":%q,"mac":"02:00:00:00:00:02"}]`, data)
	cases := map[string]struct {
		facts Facts
		want  []string
	}{
		"nothing":            {Facts{Pod: pod("plain")}, nil},
		"a namespace's own":  {Facts{Pod: pod("red"), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary"}},
		"without the label":  {Facts{Pod: pod("red")}, nil},
		"of another plugin":  {Facts{Pod: pod("red", multus, "bridge, l2@eth5")}, []string{"red/l2 on l2 as eth5 secondary"}},
		"names count all":    {Facts{Pod: pod("red", multus, "bridge,bare,other/l2")}, []string{"red/bare on bare as net2 secondary", "other/l2 on l2 as net3 secondary"}},
		"twice":              {Facts{Pod: pod("red", multus, "bare,bare,bare")}, []string{"red/bare on bare as net1 secondary", "red/bare/1 on bare as net2 secondary", "red/bare/2 on bare as net3 secondary"}},
		"wishes":             {Facts{Pod: pod("red", multus, `[{"name":"bare","mac":"02:00:00:00:00:11","ips":["192.168.1.7/24","fd01::7/64"],"default-route":["192.168.1.1"]}]`)}, []string{"red/bare on bare as net1 secondary [192.168.1.7/24 fd01::7/64] [192.168.1.1] 02:00:00:00:00:11"}},
		"claim":              {Facts{Pod: pod("red", multus, `[{"name":"l2","ipam-claim-reference":"c"},{"name":"bare","ipam-claim-reference":"d"}]`)}, []string{"red/l2 on l2 as net1 secondary claim=c", "red/bare on bare as net2 secondary"}},
		"wishes of its own":  {Facts{Pod: pod("red", request, `[{"name":"default","namespace":"system","ips":["10.20.0.100/16","fd00:20::100"],"mac":"02:03:04:05:06:07","ipam-claim-reference":"c"}]`), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary claim=c [10.20.0.100 fd00:20::100] 02:03:04:05:06:07"}},
		"no such definition": {Facts{Pod: pod("red", request, `[{"name":"default","namespace":"ovn-kubernetes","mac":"02:03:04:05:06:07"}]`), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary 02:03:04:05:06:07"}},
		"of something else":  {Facts{Pod: pod("red", request, `[{"name":"bridge","namespace":"red","mac":"02:03:04:05:06:07"}]`), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary"}},
		"by name":            {Facts{Pod: pod("red", request, "red/bridge"), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary"}},
		"older claim":        {Facts{Pod: pod("red", "k8s.ovn.org/primary-udn-ipamclaim", "c"), Tenant: true}, []string{"red/net on red_net as ovn-udn1 primary claim=c"}},
		"a MAC in layer3":    {Facts{Pod: pod("blue", request, `[{"name":"default","mac":"02:03:04:05:06:07"}]`), Tenant: true}, []string{"blue/net on blue_net as ovn-udn1 primary 02:03:04:05:06:07"}},
		"layer3":             {Facts{Pod: pod("red", multus, "l3")}, []string{"red/l3 on l3 as net1 secondary"}},
		"a machine's":        {Facts{Pod: pod("red", multus, onData), Tenant: true, VMI: machine()}, []string{"red/net on red_net as ovn-udn1 primary nic=default 02:00:00:00:00:01", "red/bare on bare as " + data + " secondary nic=data 02:00:00:00:00:02"}},
		"a machine's wishes": {Facts{Pod: pod("red"), Tenant: true, VMI: machine(func(v *virtv1.VirtualMachineInstance) {
			v.Annotations["network.kubevirt.io/addresses"] = `{"default":["10.20.0.9","fd00:20::9"],"data":["1.2.3.4"]}`
		})}, []string{"red/net on red_net as ovn-udn1 primary nic=default [10.20.0.9 fd00:20::9] 02:00:00:00:00:01"}},
		"the pod's come first": {Facts{Pod: pod("red", request, `[{"name":"default","ips":["10.20.0.8","fd00:20::8"],"mac":"02:00:00:00:00:09"}]`), Tenant: true, VMI: machine(func(v *virtv1.VirtualMachineInstance) {
			v.Annotations["network.kubevirt.io/addresses"] = `{"default":["10.20.0.9","fd00:20::9"]}`
		})}, []string{"red/net on red_net as ovn-udn1 primary nic=default [10.20.0.8 fd00:20::8] 02:00:00:00:00:09"}},
		"translated": {Facts{Pod: pod("red"), Tenant: true, VMI: machine(func(v *virtv1.VirtualMachineInstance) {
			nic := &v.Spec.Domain.Devices.Interfaces[0]
			nic.Binding, nic.Masquerade = nil, &virtv1.InterfaceMasquerade{}
		})}, []string{"red/net on red_net as ovn-udn1 primary"}},
		"in user space": {Facts{Pod: pod("red"), Tenant: true, VMI: machine(func(v *virtv1.VirtualMachineInstance) {
			v.Spec.Domain.Devices.Interfaces[0].Binding.Name = "passt"
		})}, []string{"red/net on red_net as ovn-udn1 primary"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.facts.Networks, c.facts.ManagedTap = networks(t), func(plugin string) bool { return plugin == "l2bridge" }
			wishes, err := Plan(c.facts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range wishes {
				got = append(got, line(w))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	asks := func(text string) Facts { return Facts{Pod: pod("red", multus, text)} }
	wants := func(namespace, text string) Facts { return Facts{Pod: pod(namespace, request, text), Tenant: true} }
	cases := map[string]struct {
		facts Facts
		want  string
	}{
		"no primary":             {Facts{Pod: pod("empty"), Tenant: true}, "namespace empty has the label k8s.ovn.org/primary-user-defined-network but no primary network"},
		"two primaries":          {Facts{Pod: pod("two"), Tenant: true}, "namespace two has several primary networks (two/a, two/b)"},
		"missing":                {asks("nowhere"), "network attachment definition red/nowhere does not exist"},
		"broken":                 {asks("odd"), `network attachment definition red/odd cannot be used: topology "ring" is not known`},
		"primary selected":       {asks("net"), `unexpected primary network "red_net" specified with a NetworkSelectionElement`},
		"default selected":       {asks("system/default"), "is the cluster's default network, which every pod is on anyway"},
		"no JSON":                {asks(`[{"name":`), "is not a list of networks in JSON"},
		"null":                   {asks(`[null]`), "element 1 does not name a network attachment definition"},
		"no name":                {asks("l2,,bare"), "element 2 does not name a network attachment definition"},
		"multicast":              {asks(`[{"name":"bare","mac":"01:00:5e:00:00:01"}]`), "requested MAC address"},
		"long MAC":               {asks(`[{"name":"bare","mac":"02:00:5e:00:00:01:02:03"}]`), "requested MAC address"},
		"address with IPAM":      {asks(`[{"name":"l2","ips":["10.100.200.9/24"]}]`), "cannot allocate a static IP request with IPAM for pod red/p: only supported on primary networks"},
		"address alone":          {asks(`[{"name":"bare","ips":["10.100.200.9"]}]`), "is not an address with a prefix length"},
		"equal port names":       {asks("a-b,a.b"), "their ports would have one name"},
		"layer3":                 {wants("blue", `[{"name":"default","ips":["10.30.0.9/16"]}]`), `layer2 topology is required, but network has topology "layer3"`},
		"length":                 {wants("red", `[{"name":"default","ips":["10.20.0.9/24","fd00:20::9/64"]}]`), "has another prefix length than subnet 10.20.0.0/16"},
		"no address":             {wants("red", `[{"name":"default","ips":["ten"]}]`), `requested address "ten" is not an IP address`},
		"two defaults":           {wants("red", `[{"name":"default"},{"name":"default"}]`), "lists 2 networks; want one"},
		"default no JSON":        {wants("red", `[{"name":`), "is not a list of networks in JSON"},
		"a tap on layer3":        {Facts{Pod: pod("blue"), Tenant: true, VMI: machine()}, `interface "default" of machine blue/vm cannot be on network blue_net: its topology is layer3`},
		"a second tap on layer3": {Facts{Pod: pod("red", multus, fmt.Sprintf(`[{"name":"l3","interface":%q}]`, podnetworks.InterfaceName("data"))), VMI: machine()}, `interface "data" of machine red/vm cannot be on network l3: its topology is layer3`},
		"machine's no JSON":      {Facts{Pod: pod("red"), Tenant: true, VMI: machine(func(v *virtv1.VirtualMachineInstance) { v.Annotations["network.kubevirt.io/addresses"] = "x" })}, "is not a JSON object of lists"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.facts.Networks, c.facts.ManagedTap = networks(t), func(string) bool { return true }
			_, err := Plan(c.facts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzPlan wants an answer to whatever users write into their pods.
func FuzzPlan(f *testing.F) {
	f.Add(`[{"name":"bare","mac":"02:00:00:00:00:11","ips":["192.168.1.7/24"],"default-route":["192.168.1.1"]}]`, `[{"name":"default","ips":["10.20.0.100/16"]}]`)
	f.Add("l2@eth5, other/l2", "red/bridge")
	f.Add("[null]", "[null]")
	f.Fuzz(func(t *testing.T, selections, own string) {
		facts := Facts{Pod: pod("red", multus, selections, request, own), Tenant: true, Networks: networks(t), ManagedTap: func(string) bool { return true }, VMI: machine()}
		wishes, _ := Plan(facts)
		seen := map[string]bool{}
		for _, w := range wishes {
			if seen[w.Key] || w.Network == "" || w.Interface == "" {
				t.Errorf("wish %+v", w)
			}
			seen[w.Key] = true
		}
	})
}
