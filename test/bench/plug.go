package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const plugs = 5

// plugNetwork is the network that cards are plugged into.
const plugNetwork = `{"cniVersion": "0.3.1", "name": "bench-plug", "type": "ovn-k8s-cni-overlay", "topology": "layer2",
	"subnets": "10.100.0.0/24", "netAttachDefName": "bench-plug/blue"}`

// measurePlug measures from the change of a VM until its guest has the card, and until its guest's own agent reports it. QEMU's own part of it
// is 10 ms.
func measurePlug(ctx context.Context, b *bench) ([]row, error) {
	ns, err := b.namespace(ctx, "bench-plug")
	if err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	manifest := "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: blue}\nspec:\n  config: '" + plugNetwork + "'\n"
	if _, errout, err := b.cluster.ApplyVerbose(ctx, ns.Name, manifest); err != nil {
		return nil, fmt.Errorf("%w %s", err, errout)
	}
	vm := plugVM(ns.Name)
	if err := b.cluster.Client.Create(ctx, vm); err != nil {
		return nil, err
	}
	if err := b.untilNICs(ctx, vm, 1, "guest-agent"); err != nil {
		return nil, err
	}
	var plugged, seen, unplugged []time.Duration
	for range plugs {
		begin := time.Now()
		if err := b.editNIC(ctx, vm, ""); err != nil {
			return nil, err
		}
		if err := b.untilNICs(ctx, vm, 2, "domain"); err != nil {
			return nil, err
		}
		plugged = append(plugged, time.Since(begin))
		if err := b.untilNICs(ctx, vm, 2, "guest-agent"); err != nil {
			return nil, err
		}
		seen = append(seen, time.Since(begin))
		begin = time.Now()
		if err := b.editNIC(ctx, vm, virtv1.InterfaceStateAbsent); err != nil {
			return nil, err
		}
		if err := b.untilNICs(ctx, vm, 1, "domain"); err != nil {
			return nil, err
		}
		unplugged = append(unplugged, time.Since(begin))
	}
	return []row{
		{Figure: fmt.Sprintf("hot plug: apply → NIC in guest, median of %d", plugs), Unit: "s", Ours: median(plugged), Goal: "1"},
		{Figure: "… → reported by the guest's agent", Unit: "s", Ours: median(seen)},
		{Figure: "hot unplug: apply → NIC gone, pod and status too", Unit: "s", Ours: median(unplugged)},
	}, nil
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return all[len(all)/2].Seconds()
}

func plugVM(namespace string) *virtv1.VirtualMachine {
	vmi := benchVMI(namespace, "plug", "node-1")
	always := virtv1.RunStrategyAlways
	vmi.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}
	return &virtv1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "plug"},
		Spec:       virtv1.VirtualMachineSpec{RunStrategy: &always, Template: &virtv1.VirtualMachineInstanceTemplateSpec{Spec: vmi.Spec}},
	}
}

// editNIC adds the card to the VM, or gives it another state. The controller writes the VM too.
func (b *bench) editNIC(ctx context.Context, vm *virtv1.VirtualMachine, state virtv1.InterfaceState) error {
	return b.until(ctx, time.Minute, func() error {
		if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(vm), vm); err != nil {
			return err
		}
		spec := &vm.Spec.Template.Spec
		i := virtv1.Interface{Name: "blue", State: state}
		i.Bridge = &virtv1.InterfaceBridge{}
		spec.Domain.Devices.Interfaces = append(spec.Domain.Devices.Interfaces[:1:1], i)
		spec.Networks = append(spec.Networks[:1:1], virtv1.Network{Name: "blue", NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "blue"}}})
		return b.cluster.Client.Update(ctx, vm)
	})
}

// untilNICs waits until status lists so many interfaces, the last one from a source.
func (b *bench) untilNICs(ctx context.Context, vm *virtv1.VirtualMachine, count int, source string) error {
	return b.until(ctx, 3*time.Minute, func() error {
		vmi := &virtv1.VirtualMachineInstance{}
		if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(vm), vmi); err != nil {
			return err
		}
		if all := vmi.Status.Interfaces; len(all) != count || !strings.Contains(all[count-1].InfoSource, source) {
			return fmt.Errorf("interfaces %+v", all)
		}
		return nil
	})
}
