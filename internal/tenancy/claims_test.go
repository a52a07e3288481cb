package tenancy

import (
	"fmt"
	"testing"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/tenancy/attachment"
)

// machine makes a VM.
func (s *site) machine(namespace, name string) *virtv1.VirtualMachine {
	s.t.Helper()
	running := virtv1.RunStrategyAlways
	vm := &virtv1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       virtv1.VirtualMachineSpec{RunStrategy: &running, Template: &virtv1.VirtualMachineInstanceTemplateSpec{}},
	}
	s.create(vm)
	return vm
}

// run makes the VMI of a VM, or a bare one, with a NIC on the pod network and one on each definition.
func (s *site) run(namespace, name string, vm *virtv1.VirtualMachine, definitions ...string) *virtv1.VirtualMachineInstance {
	s.t.Helper()
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if vm != nil {
		vmi.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(vm, virtv1.VirtualMachineGroupVersionKind)}
	}
	vmi.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	for _, d := range definitions {
		vmi.Spec.Networks = append(vmi.Spec.Networks, virtv1.Network{
			Name: d, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: d}},
		})
	}
	for _, n := range vmi.Spec.Networks {
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, virtv1.Interface{Name: n.Name})
	}
	s.create(vmi)
	return vmi
}

func (s *site) claim(namespace, name string) *ipamclaimsv1alpha1.IPAMClaim {
	s.t.Helper()
	c := &ipamclaimsv1alpha1.IPAMClaim{}
	s.until("claim "+name, func() error {
		return s.client.Get(s.t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, c)
	})
	return c
}

// tenant makes a namespace with a primary network.
func (s *site) tenant() string {
	s.t.Helper()
	ns := s.namespace(primary())
	s.create(udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16")))
	s.definition(ns, "net")
	return ns
}

func TestClaimsOfMachine(t *testing.T) {
	s := newSite(t)
	ns := s.tenant()
	s.create(udn(ns, "data", layer2(ovnv1.Secondary, "10.30.0.0/16")))
	brief := layer2(ovnv1.Secondary, "10.31.0.0/16")
	brief.IPAM = nil
	s.create(udn(ns, "brief", brief))
	s.definition(ns, "data")
	s.definition(ns, "brief")

	vm := s.machine(ns, "web")
	vmi := s.run(ns, "web", vm, "data", "brief")
	c := s.claim(ns, "web.default")
	if c.Spec.Network != ns+"_net" || c.OwnerReferences[0].UID != vm.UID || c.Labels[attachment.ClaimLabel] != "web" {
		t.Errorf("%+v", c)
	}
	if c := s.claim(ns, "web.data"); c.Spec.Network != ns+"_data" {
		t.Errorf("network %s", c.Spec.Network)
	}
	var all ipamclaimsv1alpha1.IPAMClaimList
	if err := s.client.List(t.Context(), &all, client.InNamespace(ns)); err != nil || len(all.Items) != 2 {
		t.Errorf("%d claims, want none for the network without persistent addresses, %v", len(all.Items), err)
	}

	// The machine stops: its addresses stay.
	s.delete(vmi)
	change(s, c, func(c *ipamclaimsv1alpha1.IPAMClaim) { c.Annotations = map[string]string{"wake": "up"} })
	// It starts again with the same claims, and ends for good.
	vmi = s.run(ns, "web", vm, "data", "brief")
	if again := s.claim(ns, "web.default"); again.UID != c.UID {
		t.Error("the restart made a new claim")
	}
	s.delete(vmi)
	s.delete(vm)
	s.gone(s.claimNamed(ns, "web.default"))
	s.gone(s.claimNamed(ns, "web.data"))
}

func (s *site) claimNamed(namespace, name string) *ipamclaimsv1alpha1.IPAMClaim {
	return &ipamclaimsv1alpha1.IPAMClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func TestClaimStaysWhileTheGuestEnds(t *testing.T) {
	s := newSite(t)
	ns := s.tenant()
	vm := s.machine(ns, "web")
	vm.Finalizers = []string{"example.com/hold"}
	if err := s.client.Update(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	vmi := s.run(ns, "web", vm)
	change(s, vmi, func(vmi *virtv1.VirtualMachineInstance) { vmi.Status.Phase = virtv1.Running })
	c := s.claim(ns, "web.default")
	s.delete(vm)
	s.delete(c) // as the garbage collector does in the foreground
	s.until("the claim is being deleted", func() error {
		if c := s.claim(ns, "web.default"); c.DeletionTimestamp == nil || len(c.Finalizers) != 1 {
			return fmt.Errorf("%+v", c.ObjectMeta)
		}
		return nil
	})
	change(s, vmi, func(vmi *virtv1.VirtualMachineInstance) { vmi.Labels = map[string]string{"wake": "up"} })
	s.claim(ns, "web.default")
	s.delete(vmi)
	s.gone(c)
	change(s, vm, func(vm *virtv1.VirtualMachine) { vm.Finalizers = nil })
}

func TestClaimOfBareInstance(t *testing.T) {
	s := newSite(t)
	ns := s.tenant()
	vmi := s.run(ns, "bare", nil)
	c := s.claim(ns, "bare.default")
	if c.OwnerReferences[0].UID != vmi.UID {
		t.Errorf("owner %+v", c.OwnerReferences)
	}
	s.delete(vmi)
	s.gone(c)
}

// A machine that is made again under its old name does not get what the old one had; it waits until that is released.
func TestMachineMadeAgain(t *testing.T) {
	s := newSite(t)
	ns := s.tenant()
	vm := s.machine(ns, "web")
	vmi := s.run(ns, "web", vm)
	first := s.claim(ns, "web.default").UID
	s.kill()
	s.delete(vmi)
	s.delete(vm)
	vm = s.machine(ns, "web")
	s.run(ns, "web", vm)
	s.start()
	s.until("the claim is a new one", func() error {
		if c := s.claim(ns, "web.default"); c.UID == first || c.OwnerReferences[0].UID != vm.UID {
			return fmt.Errorf("%+v", c.ObjectMeta)
		}
		return nil
	})
}

func TestForeignClaim(t *testing.T) {
	s := newSite(t)
	ns := s.tenant()
	foreign := s.claimNamed(ns, "web.default")
	foreign.Spec.Network = "mine"
	s.create(foreign)
	s.run(ns, "web", s.machine(ns, "web"))
	s.run(ns, "other", s.machine(ns, "other"))
	s.claim(ns, "other.default") // made after web's turn
	if c := s.claim(ns, "web.default"); c.Spec.Network != "mine" || len(c.OwnerReferences) != 0 {
		t.Errorf("the foreign claim was changed: %+v", c)
	}
	s.delete(foreign)
	s.until("the machine has its claim", func() error {
		if c := s.claim(ns, "web.default"); c.Spec.Network == "mine" {
			return fmt.Errorf("%+v", c.ObjectMeta)
		}
		return nil
	})
}

// A definition that comes after the machine wakes it.
func TestNetworkAfterMachine(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	s.run(ns, "early", s.machine(ns, "early"))
	s.create(udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16")))
	s.claim(ns, "early.default")
}
