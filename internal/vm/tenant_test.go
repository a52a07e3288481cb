package vm

import (
	"fmt"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/tenancy/attachment"
)

// A machine in a tenant's namespace waits for the network, then for the claim that keeps its addresses; its pod asks for both.
func TestMachineOfTenant(t *testing.T) {
	s := newSite(t, map[string]string{ovnv1.PrimaryNamespaceLabel: ""})
	s.controllers()
	machine := s.machine("web", virtv1.RunStrategyAlways)
	machine.Spec.Template.ObjectMeta.Annotations[attachment.AddressesAnnotation] = `{"default":["10.20.0.9"]}`
	s.create(machine)
	s.eventually(func() string {
		if vmi := s.instance("web"); vmi == nil || !strings.Contains(fmt.Sprint(vmi.Status.Conditions), "no primary network yet") {
			return fmt.Sprintf("instance %+v does not say what it waits for", vmi)
		}
		return ""
	})
	if nic := s.instance("web").Spec.Domain.Devices.Interfaces[0]; nic.Binding == nil || nic.Binding.Name != "l2bridge" {
		t.Errorf("interface %+v, want the binding l2bridge", nic)
	}

	d := &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "net"}}
	d.Spec.Config = fmt.Sprintf(`{"type":"ovn-k8s-cni-overlay","name":"net","netAttachDefName":"%s/net","topology":"layer2",`+
		`"role":"primary","subnets":"10.20.0.0/16","allowPersistentIPs":true}`, s.namespace)
	s.create(d)
	s.eventually(func() string {
		if pods := s.pods(); len(pods) != 0 {
			t.Fatalf("pod %s was made before its claim", pods[0].Name)
		}
		if c := fmt.Sprint(s.instance("web").Status.Conditions); strings.Contains(c, "no primary network yet") {
			return "the instance still waits for the network: " + c
		}
		return ""
	})
	network, err := netconf.Parse(s.namespace+"/net", d.Spec.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.create(attachment.Claim(s.instance("web"), attachment.Attachment{Name: "default", Network: network}))
	s.shows("web", virtv1.VirtualMachineStatusRunning)

	annotations := s.pods()[0].Annotations
	if got := annotations["k8s.ovn.org/primary-udn-ipamclaim"]; got != "web.default" {
		t.Errorf("the pod names the claim %q", got)
	}
	want := `[{"name":"default","namespace":"patchbay-system","ips":["10.20.0.9/16"],"ipam-claim-reference":"web.default"}]`
	if got := annotations["v1.multus-cni.io/default-network"]; got != want {
		t.Errorf("the pod asks for %s, want %s", got, want)
	}
}
