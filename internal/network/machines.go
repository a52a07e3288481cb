package network

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/network/attach"
	"patchbay/internal/network/place"
	"patchbay/internal/topology"
)

func (n *Network) addMachines(m manager.Manager) error {
	// Where the machine is, and where it goes.
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, vmi := e.ObjectOld.(*virtv1.VirtualMachineInstance), e.ObjectNew.(*virtv1.VirtualMachineInstance)
		return old.UID != vmi.UID || old.Status.NodeName != vmi.Status.NodeName ||
			!equality.Semantic.DeepEqual(old.Status.MigrationState, vmi.Status.MigrationState) ||
			!equality.Semantic.DeepEqual(old.Spec, vmi.Spec)
	}}
	return ctrl.NewControllerManagedBy(m).Named("network-machines").For(&virtv1.VirtualMachineInstance{}, builder.WithPredicates(relevant)).
		WithOptions(n.options(4)).Complete(n.afterRecovery(func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		n.wakePods.Wake(n.waits.come(attach.OnMachine(req.Namespace, req.Name))...)
		return reconcile.Result{}, n.placeMachine(ctx, req.NamespacedName)
	}))
}

func nicOwner(machine client.ObjectKey, nic string) string {
	return "nic/" + machine.String() + "/" + nic
}

// placeMachine makes the ports of a machine's interfaces, where the machine is.
func (n *Network) placeMachine(ctx context.Context, machine client.ObjectKey) error {
	n.placing.Lock() // rows are set in the order in which they were decided
	defer n.placing.Unlock()
	vmi := &virtv1.VirtualMachineInstance{}
	if err := n.client.Get(ctx, machine, vmi); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read virtual machine instance %s: %w", machine, err)
	}
	nics := n.tenants.nics(machine, vmi)
	for _, gone := range n.tenants.setPlaced(machine, nics) {
		n.Rows.Delete(nicOwner(machine, gone))
	}
	n.holdMachine(machine, vmi, nics)
	for _, nic := range nics {
		n.Rows.Set(nicOwner(machine, nic.Name), topology.NICRows(nic))
	}
	return nil
}

// nics are a machine's interfaces, by what its pods have. When the pods of two machines of one name are there, the living
// machine's count.
func (t *tenants) nics(key client.ObjectKey, vmi *virtv1.VirtualMachineInstance) []topology.NIC {
	t.mu.Lock()
	defer t.mu.Unlock()
	pods := t.podsOf(key, vmi)
	chassis := place.Chassis(vmi, t.launchers(pods))
	found := map[string]topology.NIC{}
	for _, pod := range pods {
		for _, a := range t.attached[pod].on {
			network, ok := t.catalog.Network(a.Network)
			if a.NIC == "" || !ok {
				continue
			}
			found[a.NIC] = topology.NIC{
				Namespace: key.Namespace, VMI: key.Name, Name: a.NIC, Network: network, MAC: a.given.MAC,
				IPs: withLengths(network, a.given.IPs), Hostname: hostname(key, vmi), Chassis: chassis,
			}
		}
	}
	return slices.Collect(maps.Values(found))
}

func hostname(key client.ObjectKey, vmi *virtv1.VirtualMachineInstance) string {
	if vmi.Spec.Hostname != "" {
		return vmi.Spec.Hostname
	}
	return key.Name
}

// podsOf are the pods of the machine that lives, or else of any of its name.
func (t *tenants) podsOf(key client.ObjectKey, vmi *virtv1.VirtualMachineInstance) []client.ObjectKey {
	var all, living []client.ObjectKey
	for pod := range t.machines[key] {
		all = append(all, pod)
		if t.attached[pod].machine.UID == vmi.UID {
			living = append(living, pod)
		}
	}
	if len(living) > 0 {
		all = living
	}
	slices.SortFunc(all, func(a, b client.ObjectKey) int { return t.attached[a].seen - t.attached[b].seen })
	return all
}

func (t *tenants) launchers(pods []client.ObjectKey) []place.Launcher {
	var out []place.Launcher
	for _, pod := range pods {
		p := t.attached[pod]
		out = append(out, place.Launcher{Pod: pod.Name, Node: p.node, Migration: p.job})
	}
	return out
}

// setPlaced remembers which of a machine's interfaces have ports, and returns those that have one no longer.
func (t *tenants) setPlaced(machine client.ObjectKey, nics []topology.NIC) (gone []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := map[string]bool{}
	for _, nic := range nics {
		now[nic.Name] = true
	}
	for nic := range t.placed[machine] {
		if !now[nic] {
			gone = append(gone, nic)
		}
	}
	t.placed[machine] = now
	if len(now) == 0 {
		delete(t.placed, machine)
	}
	return gone
}
