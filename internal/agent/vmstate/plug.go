package vmstate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// Plugging is what keeps a guest's network cards from being those of its instance.
type Plugging struct {
	Plug   []virtv1.Interface // that the guest lacks
	Unplug []string           // that it is to lose
	Rewire []virtv1.Interface // whose network is another now
}

func (p Plugging) nothing() bool { return len(p.Plug)+len(p.Unplug)+len(p.Rewire) == 0 }

// PlanPlugging compares an instance with the network cards of its guest. An interface that is gone from the instance was absent before: it
// is unplugged.
func PlanPlugging(vmi *virtv1.VirtualMachineInstance, nics []NIC) Plugging {
	var p Plugging
	has := map[string]NIC{}
	wanted := map[string]bool{}
	for _, n := range nics {
		has[n.Name] = n
	}
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		if i.State == virtv1.InterfaceStateAbsent {
			continue
		}
		wanted[i.Name] = true
		n, plugged := has[i.Name]
		switch {
		case !plugged:
			p.Plug = append(p.Plug, i)
		case n.Network != AttachmentName(vmi, i.Name):
			p.Rewire = append(p.Rewire, i)
		}
	}
	for _, n := range nics {
		if !wanted[n.Name] {
			p.Unplug = append(p.Unplug, n.Name)
		}
	}
	return p
}

// AttachmentName is the name of the attachment definition that an interface asks for; empty for the pod network.
func AttachmentName(vmi *virtv1.VirtualMachineInstance, name string) string {
	for _, n := range vmi.Spec.Networks {
		if n.Name == name && n.Multus != nil {
			return n.Multus.NetworkName
		}
	}
	return ""
}

// syncNICs has the guest's network cards follow the instance. While a migration is under way both sides must have the same.
func (s *step) syncNICs() {
	d := s.o.Domain
	if d.NICs == nil || s.o.Plugging || isMigrating(s.o.VMI) || PlanPlugging(s.o.VMI, d.NICs).nothing() {
		return
	}
	if f := s.o.NICFailure; f != nil && s.o.Now.Before(f.Retry) {
		s.wake(f.Retry)
		return
	}
	s.act(SyncNICs)
}

func isMigrating(vmi *virtv1.VirtualMachineInstance) bool {
	m := vmi.Status.MigrationState
	return m != nil && !m.Completed && !m.Failed
}

// describePlugging says why a network card could not be plugged or unplugged. What is merely not ready yet is no failure.
func (s *step) describePlugging() {
	const kind = virtv1.VirtualMachineInstanceSynchronized
	if f := s.o.NICFailure; f != nil && f.Message != "" && !PlanPlugging(s.o.VMI, s.o.Domain.NICs).nothing() {
		if !slices.ContainsFunc(s.r.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool { return c.Type == kind && c.Message == f.Message }) {
			s.tell(Event{Type: corev1.EventTypeWarning, Reason: reasonPlugFailed, Message: f.Message})
		}
		s.setCondition(kind, false, reasonPlugFailed, f.Message)
		return
	}
	if s.o.Plugging {
		return // an earlier verdict stands until the outcome is known
	}
	s.r.Status.Conditions = slices.DeleteFunc(s.r.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
		return c.Type == kind && c.Reason == reasonPlugFailed
	})
}
