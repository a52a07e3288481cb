package lifecycle

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// hotPlugSlots is how many PCI slots a machine has for its network interfaces; those it was started with count.
const hotPlugSlots = 4

// updateLive brings to the instance what may change while the guest runs, and says of the rest that it needs a restart.
func (s *vmStep) updateLive() error {
	if s.view.VMI == nil || s.vmi == nil || s.vmi.DeletionTimestamp != nil || s.vmi.IsFinal() {
		return nil
	}
	if s.vmi.Status.VirtualMachineRevisionName == "" {
		s.nameRevision()
	}
	if s.view.Started == nil {
		return nil // an earlier verdict stands
	}
	template := s.vm.Spec.Template.Spec.DeepCopy()
	if err := s.view.Settings.defaultNetwork(s.vm.Namespace, template); err != nil {
		return err
	}
	why := restartReason(s.view.Settings, &s.view.Started.Template.Spec, template)
	nics := planInterfaces(template, s.vmi)
	if why == "" {
		why = nics.restart
	}
	if s.vmi.IsRunning() && !isMigrating(s.vmi) {
		s.vmi.Spec.Networks, s.vmi.Spec.Domain.Devices.Interfaces = nics.networks, nics.interfaces
		if s.view.Settings.LiveUpdate {
			s.vmi.Spec.NodeSelector, s.vmi.Spec.Affinity, s.vmi.Spec.Tolerations = template.NodeSelector, template.Affinity, template.Tolerations
		}
	}
	if why == "" {
		removeVMConditions(&s.vm.Status, func(t virtv1.VirtualMachineConditionType) bool { return t == virtv1.VirtualMachineRestartRequired })
		return nil
	}
	setVMCondition(&s.vm.Status, metav1.NewTime(s.view.Now), virtv1.VirtualMachineCondition{
		Type: virtv1.VirtualMachineRestartRequired, Status: corev1.ConditionTrue, Reason: reasonRestartRequired, Message: why,
	})
	return nil
}

// nameRevision repairs an instance whose status was lost between its creation and the first look at it.
func (s *vmStep) nameRevision() {
	if g := s.vmi.Annotations[virtv1.VirtualMachineGenerationAnnotation]; g != "" && metav1.IsControlledBy(s.vmi, s.vm) {
		s.vmi.Status.VirtualMachineRevisionName = fmt.Sprintf("revision-start-vm-%s-%s", s.vm.UID, g)
	}
}

// restartReason says why an edit of the template reaches the guest only with a restart; empty when none does. Interfaces and
// networks are judged against the instance, by planInterfaces.
func restartReason(settings Settings, started, now *virtv1.VirtualMachineInstanceSpec) string {
	if text := socketReason(started.Domain.CPU, now.Domain.CPU); text != "" {
		return text
	}
	a, b := started.DeepCopy(), now.DeepCopy()
	for _, spec := range []*virtv1.VirtualMachineInstanceSpec{a, b} {
		spec.Networks, spec.Domain.Devices.Interfaces = nil, nil
		if settings.LiveUpdate {
			spec.NodeSelector, spec.Affinity, spec.Tolerations = nil, nil, nil
		}
	}
	if !equality.Semantic.DeepEqual(a, b) {
		return textRestartRequired
	}
	return ""
}

func socketReason(started, now *virtv1.CPU) string {
	if started == nil || now == nil || started.Sockets == 0 || now.Sockets == 0 {
		return ""
	}
	switch {
	case now.Sockets < started.Sockets:
		return textFewerSockets
	case started.MaxSockets != 0 && now.Sockets > started.MaxSockets:
		return textTooManySockets
	}
	return ""
}

// interfacePlan is what a running instance's networks become, and why the rest of an edit must wait for a restart.
type interfacePlan struct {
	networks   []virtv1.Network
	interfaces []virtv1.Interface
	restart    string
}

// planInterfaces compares the template with the running instance, interface by interface.
func planInterfaces(template *virtv1.VirtualMachineInstanceSpec, vmi *virtv1.VirtualMachineInstance) interfacePlan {
	p := interfacePlan{networks: slices.Clone(vmi.Spec.Networks), interfaces: slices.Clone(vmi.Spec.Domain.Devices.Interfaces)}
	for _, nic := range template.Domain.Devices.Interfaces {
		n := indexNetwork(template.Networks, nic.Name)
		if n < 0 {
			continue // admission refuses it
		}
		if i := indexInterface(p.interfaces, nic.Name); i >= 0 {
			p.change(i, nic, template.Networks[n], vmi.IsMigratable())
		} else {
			p.add(nic, template.Networks[n])
		}
	}
	p.remove(template, vmi)
	return p
}

// change takes over what may change of an interface that the instance has.
func (p *interfacePlan) change(i int, wanted virtv1.Interface, network virtv1.Network, migratable bool) {
	current := &p.interfaces[i]
	a, b := *current, wanted
	a.State, b.State = "", ""
	if !equality.Semantic.DeepEqual(a, b) {
		p.restart = textRestartRequired
	}
	if current.State != virtv1.InterfaceStateAbsent { // which is for good, as long as this instance lives
		current.State = wanted.State
	}
	n := indexNetwork(p.networks, wanted.Name)
	if n < 0 || equality.Semantic.DeepEqual(p.networks[n], network) {
		return
	}
	if old := p.networks[n]; migratable && old.Multus != nil && network.Multus != nil && old.Multus.Default == network.Multus.Default {
		p.networks[n] = network
		return
	}
	p.restart = textRestartRequired
}

// add plugs in an interface that the instance lacks, when its kind can be plugged and a slot is free.
func (p *interfacePlan) add(nic virtv1.Interface, network virtv1.Network) {
	switch {
	case nic.State == virtv1.InterfaceStateAbsent:
	case network.Pod != nil:
		p.restart = textRestartRequired
	case nic.SRIOV != nil:
		p.restart = fmt.Sprintf("interface %s waits for a restart: an SR-IOV interface cannot be plugged into a running guest", nic.Name)
	case nic.Bridge == nil || network.Multus == nil || network.Multus.Default:
		// Takes effect with the next start; the field does not call that a required restart.
	case len(p.interfaces) >= hotPlugSlots:
		p.restart = fmt.Sprintf("interface %s waits for a restart: all %d slots for network interfaces are taken", nic.Name, hotPlugSlots)
	default:
		p.interfaces = append(p.interfaces, nic)
		p.networks = append(p.networks, network)
	}
}

// remove drops absent interfaces that are unplugged. One that is taken out of the template while it is plugged needs a restart.
func (p *interfacePlan) remove(template *virtv1.VirtualMachineInstanceSpec, vmi *virtv1.VirtualMachineInstance) {
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		i := indexInterface(p.interfaces, nic.Name)
		if p.interfaces[i].State == virtv1.InterfaceStateAbsent {
			if nic.State == virtv1.InterfaceStateAbsent && !hasInterfaceStatus(vmi, nic.Name) {
				p.interfaces = slices.Delete(p.interfaces, i, i+1)
				p.networks = slices.DeleteFunc(p.networks, func(n virtv1.Network) bool { return n.Name == nic.Name })
			}
			continue
		}
		if indexInterface(template.Domain.Devices.Interfaces, nic.Name) < 0 {
			p.restart = textRestartRequired
		}
	}
}

// purgeAbsent takes interfaces out of the template that the user marked absent and that no instance has any more.
func purgeAbsent(vm *virtv1.VirtualMachine, vmi *virtv1.VirtualMachineInstance) {
	spec := &vm.Spec.Template.Spec
	gone := map[string]bool{}
	for _, nic := range spec.Domain.Devices.Interfaces {
		plugged := vmi != nil && (indexInterface(vmi.Spec.Domain.Devices.Interfaces, nic.Name) >= 0 || hasInterfaceStatus(vmi, nic.Name))
		gone[nic.Name] = nic.State == virtv1.InterfaceStateAbsent && !plugged
	}
	spec.Domain.Devices.Interfaces = slices.DeleteFunc(spec.Domain.Devices.Interfaces, func(i virtv1.Interface) bool { return gone[i.Name] })
	spec.Networks = slices.DeleteFunc(spec.Networks, func(n virtv1.Network) bool { return gone[n.Name] })
}

func hasInterfaceStatus(vmi *virtv1.VirtualMachineInstance, name string) bool {
	return slices.ContainsFunc(vmi.Status.Interfaces, func(i virtv1.VirtualMachineInstanceNetworkInterface) bool { return i.Name == name })
}

func indexInterface(list []virtv1.Interface, name string) int {
	return slices.IndexFunc(list, func(i virtv1.Interface) bool { return i.Name == name })
}

func indexNetwork(list []virtv1.Network, name string) int {
	return slices.IndexFunc(list, func(n virtv1.Network) bool { return n.Name == name })
}
