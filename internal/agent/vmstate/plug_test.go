package vmstate

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/golden"
)

// at1 is when a failed attempt is repeated.
const at1 = time.Second

func bridged(name, network string, state virtv1.InterfaceState) (virtv1.Interface, virtv1.Network) {
	i := virtv1.Interface{Name: name, State: state}
	i.Bridge = &virtv1.InterfaceBridge{}
	return i, virtv1.Network{Name: name, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: network}}}
}

func TestPlanPlugging(t *testing.T) {
	vmi := &virtv1.VirtualMachineInstance{}
	for _, n := range []struct {
		name, network string
		state         virtv1.InterfaceState
	}{{"same", "blue", ""}, {"down", "blue", virtv1.InterfaceStateLinkDown}, {"moved", "green", ""}, {"new", "blue", ""},
		{"leaving", "blue", virtv1.InterfaceStateAbsent}, {"left", "blue", virtv1.InterfaceStateAbsent}} {
		i, network := bridged(n.name, n.network, n.state)
		vmi.Spec.Domain.Devices.Interfaces = append(vmi.Spec.Domain.Devices.Interfaces, i)
		vmi.Spec.Networks = append(vmi.Spec.Networks, network)
	}
	p := PlanPlugging(vmi, []NIC{{Name: "same", Network: "blue"}, {Name: "down", Network: "blue"}, {Name: "moved", Network: "blue"},
		{Name: "leaving", Network: "blue"}, {Name: "unknown", Network: "blue"}})
	names := func(list []virtv1.Interface) (all []string) {
		for _, i := range list {
			all = append(all, i.Name)
		}
		return all
	}
	got := map[string][]string{"plug": names(p.Plug), "unplug": p.Unplug, "rewire": names(p.Rewire)}
	want := map[string][]string{"plug": {"new"}, "unplug": {"leaving", "unknown"}, "rewire": {"moved"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlugStory(t *testing.T) {
	add := func(o *Observed) {
		i, network := bridged("blue", "blue-l2", "")
		o.VMI.Spec.Domain.Devices.Interfaces = append(o.VMI.Spec.Domain.Devices.Interfaces, i)
		o.VMI.Spec.Networks = append(o.VMI.Spec.Networks, network)
	}
	full := &Failure{Message: `plug interface "blue": no PCI port is free`, Retry: epoch.Add(at1)}
	golden.Check(t, "txt", play([]scene{podReady, starting, running,
		{"a migration is under way", func(o *Observed) { o.VMI.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{} }},
		{"an interface is added", add},
		{"the migration is over", func(o *Observed) { o.VMI.Status.MigrationState.Completed = true }},
		{"the card is being plugged", func(o *Observed) { o.Plugging = true }},
		{"that fails", func(o *Observed) { o.Plugging, o.NICFailure = false, full }},
		{"the network is not ready either", func(o *Observed) { o.NICFailure = &Failure{Retry: epoch.Add(at1)} }},
		at(at1),
		{"the card is plugged", func(o *Observed) {
			o.NICFailure = nil
			o.Domain.NICs = append(o.Domain.NICs, NIC{Name: "blue", Network: "blue-l2", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Queues: 1})
		}},
		{"the controller has seen it in the pod", func(o *Observed) { o.VMI.Status.Interfaces[1].InfoSource = "domain, multus-status" }},
		{"it is to leave", func(o *Observed) { o.VMI.Spec.Domain.Devices.Interfaces[1].State = virtv1.InterfaceStateAbsent }},
		{"the guest has let it go", func(o *Observed) { o.Domain.NICs = o.Domain.NICs[:1] }},
		{"the pod has left the network", func(o *Observed) { o.VMI.Status.Interfaces[1].InfoSource = "" }},
	}))
}

// A migration waits for the card that is being plugged: the target is told which cards the guest has.
func TestMigrationWaitsForPlug(t *testing.T) {
	o := Observed{Now: epoch, Node: "node-1", VMI: &virtv1.VirtualMachineInstance{}, Domain: &Domain{RunState: "running"}, Plugging: true}
	started := metav1.NewTime(epoch)
	o.VMI.Status.Phase, o.VMI.Status.NodeName = virtv1.Running, o.Node
	o.VMI.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: "1", SourceNode: "node-1", TargetNode: "node-2", TargetNodeAddress: "10.0.0.2", StartTimestamp: &started,
		TargetDirectMigrationNodePorts: map[string]int{"49152": 0},
	}
	if got := Step(o).Actions; len(got) != 0 {
		t.Errorf("while a card is being plugged it does %q", got)
	}
	o.Plugging = false
	if got := Step(o).Actions; !slices.Contains(got, Send) {
		t.Errorf("afterwards it does %q, want %q", got, Send)
	}
}
