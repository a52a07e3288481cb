package vmdriver

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// What is at the other end of a NIC decides first, then its binding.
func TestWirerOf(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := virtv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	kubevirt := &virtv1.KubeVirt{}
	kubevirt.Name, kubevirt.Namespace = "kubevirt", "kubevirt"
	kubevirt.Spec.Configuration.NetworkConfiguration = &virtv1.NetworkConfiguration{Binding: map[string]virtv1.InterfaceBindingPlugin{
		"mytap": {DomainAttachmentType: virtv1.ManagedTap}, "sidecar": {SidecarImage: "x"},
	}}
	taps, bridge, l2, masquerade := &Taps{}, &Bridge{Serve: true}, &Bridge{}, &Masquerade{}
	d := New(Config{
		Live: fake.NewClientBuilder().WithScheme(scheme).WithObjects(kubevirt).Build(), Taps: taps,
		Wirers: map[string]Wirer{BindingBridge: bridge, BindingL2Bridge: l2, BindingMasquerade: masquerade},
	})
	pod := podnet.Pod{Interfaces: []podnet.Interface{
		{Name: "eth0", Port: "red_p"},
		{Name: podnetworks.PrimaryInterface, Port: "vm/red/vm/default", Tap: true, Default: true},
		{Name: podnetworks.InterfaceName("blue"), Port: "vm/red/vm/blue", Tap: true},
		{Name: podnetworks.InterfaceName("lan")},
		{Name: "net3"},
	}}
	bound := func(i virtv1.Interface) func(string) virtv1.Interface {
		return func(name string) virtv1.Interface { i.Name = name; return i }
	}
	plugin := func(name string) func(string) virtv1.Interface {
		return bound(virtv1.Interface{Binding: &virtv1.PluginBinding{Name: name}})
	}
	bridged := bound(virtv1.Interface{InterfaceBindingMethod: virtv1.InterfaceBindingMethod{Bridge: &virtv1.InterfaceBridge{}}})
	cases := map[string]struct {
		nic  virtv1.Interface
		want Wirer
		err  string
	}{
		"primary by l2bridge":       {plugin("l2bridge")("default"), taps, ""},
		"overlay by bridge":         {bridged("blue"), taps, ""},
		"plugin's by bridge":        {bridged("lan"), bridge, ""},
		"ordinal name":              {bridged("third"), bridge, ""},
		"plugin's by a managed tap": {plugin("mytap")("lan"), l2, ""},
		"unknown plugin":            {plugin("sidecar")("lan"), nil, `cannot wire the binding "sidecar"`},
		"not attached yet":          {bridged("fourth"), nil, "is not attached to network fourth-nad yet"},
	}
	vmi := &virtv1.VirtualMachineInstance{}
	for _, name := range []string{"default", "blue", "lan", "third", "fourth"} {
		n := virtv1.Network{Name: name, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: name + "-nad"}}}
		if name == "default" {
			n.NetworkSource = virtv1.NetworkSource{Pod: &virtv1.PodNetwork{}}
		}
		vmi.Spec.Networks = append(vmi.Spec.Networks, n)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			nic := NIC{VMI: vmi, Interface: c.nic, Pod: pod}
			for _, n := range vmi.Spec.Networks {
				if n.Name == c.nic.Name {
					nic.Network = n
				}
			}
			got, err := d.wirerOf(nic)
			if c.err == "" && (err != nil || got != c.want) {
				t.Errorf("got %T %+v, %v", got, got, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
		})
	}
}
