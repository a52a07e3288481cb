package admission

import (
	"errors"
	"slices"
	"strings"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

const (
	// hotplugRatio is how much a guest may grow while it runs, over what it starts with.
	hotplugRatio = 4
	// maxVCPUs is the most that growth may reach.
	maxVCPUs = 512
	// runtimeUser is the user and group that QEMU runs as in the launcher's pod.
	runtimeUser = 107
	// pciTopology marks machines whose devices keep their addresses whatever their memory size.
	pciTopology = "v3"
)

// NewID makes the random identifiers of a machine's firmware; tests replace it in Defaulter.
type NewID func() string

// Defaulter fills in what users leave out.
type Defaulter struct {
	Policy Policy
	NewID  NewID // uuid.NewString when nil
	// Tenant tells whether a namespace has a primary network of its own; none has when nil.
	Tenant func(namespace string) bool
	// ProjectKeys tells the secret whose SSH keys go to every machine of a namespace; empty for none.
	ProjectKeys func(namespace string) string
}

func (d Defaulter) newID() string {
	if d.NewID == nil {
		return uuid.NewString()
	}
	return d.NewID()
}

// DefaultVM fills in a new VM of a namespace. It never adds a network: a VM without interfaces shows none, its VMI gets one.
func (d Defaulter) DefaultVM(namespace string, vm *virtv1.VirtualMachine) {
	if vm.Spec.Template == nil {
		return // validation refuses it
	}
	d.machine(&vm.Spec.Template.Spec)
	d.projectKeys(namespace, &vm.Spec.Template.Spec)
	meta := &vm.Spec.Template.ObjectMeta
	if _, set := meta.Annotations[virtv1.PciTopologyVersionAnnotation]; !set && hasPCIe(vm.Spec.Template.Spec.Domain.Machine.Type) {
		setAnnotation(meta, virtv1.PciTopologyVersionAnnotation, pciTopology)
	}
}

// KeepIdentity restores what DefaultVM once filled in and a later write of the whole object left out, so that `kubectl replace`
// with the original manifest does not change the machine.
func KeepIdentity(old, vm *virtv1.VirtualMachine) {
	if old.Spec.Template == nil || vm.Spec.Template == nil {
		return
	}
	before, after := &old.Spec.Template.Spec, &vm.Spec.Template.Spec
	if f := before.Domain.Firmware; f != nil {
		if after.Domain.Firmware == nil {
			after.Domain.Firmware = &virtv1.Firmware{}
		}
		if after.Domain.Firmware.UUID == "" {
			after.Domain.Firmware.UUID = f.UUID
		}
		if after.Domain.Firmware.Serial == "" {
			after.Domain.Firmware.Serial = f.Serial
		}
	}
	if after.Architecture == "" {
		after.Architecture = before.Architecture
	}
	if after.Domain.Machine == nil || after.Domain.Machine.Type == "" {
		after.Domain.Machine = before.Domain.Machine.DeepCopy()
	}
	if version, set := old.Spec.Template.ObjectMeta.Annotations[virtv1.PciTopologyVersionAnnotation]; set {
		if _, kept := vm.Spec.Template.ObjectMeta.Annotations[virtv1.PciTopologyVersionAnnotation]; !kept {
			setAnnotation(&vm.Spec.Template.ObjectMeta, virtv1.PciTopologyVersionAnnotation, version)
		}
	}
}

func setAnnotation(meta *metav1.ObjectMeta, key, value string) {
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[key] = value
}

func hasPCIe(machine string) bool {
	return strings.Contains(machine, "q35") || strings.HasPrefix(machine, "virt")
}

// machine fills in what makes a machine the same at its next start: identity, architecture and machine type.
func (d Defaulter) machine(spec *virtv1.VirtualMachineInstanceSpec) {
	if spec.Domain.Firmware == nil {
		spec.Domain.Firmware = &virtv1.Firmware{}
	}
	if spec.Domain.Firmware.UUID == "" {
		spec.Domain.Firmware.UUID = types.UID(d.newID())
	}
	if spec.Domain.Firmware.Serial == "" {
		spec.Domain.Firmware.Serial = d.newID()
	}
	if spec.Architecture == "" {
		spec.Architecture = d.Policy.Architecture
	}
	if spec.Domain.Machine == nil {
		spec.Domain.Machine = &virtv1.Machine{}
	}
	if spec.Domain.Machine.Type == "" {
		spec.Domain.Machine.Type = d.Policy.MachineType
	}
}

// DefaultVMI fills in a new VMI. Only Patchbay's own processes may bring a status along.
func (d Defaulter) DefaultVMI(vmi *virtv1.VirtualMachineInstance, by Requester) error {
	if err := d.DefaultNetwork(vmi.Namespace, &vmi.Spec); err != nil {
		return err
	}
	d.DefaultBindings(vmi.Namespace, &vmi.Spec)
	d.machine(&vmi.Spec)
	disksOfVolumes(&vmi.Spec)
	defaultCPU(&vmi.Spec)
	if m := vmi.Spec.Domain.Memory; m != nil && m.Guest != nil && m.MaxGuest == nil {
		m.MaxGuest = resource.NewQuantity(m.Guest.Value()*hotplugRatio, m.Guest.Format)
	}
	if vmi.Spec.EvictionStrategy == nil {
		vmi.Spec.EvictionStrategy = d.Policy.EvictionStrategy
	}
	virtv1.SetDefaults_Probe(vmi.Spec.ReadinessProbe)
	virtv1.SetDefaults_Probe(vmi.Spec.LivenessProbe)
	addFinalizer(&vmi.ObjectMeta, virtv1.VirtualMachineInstanceFinalizer)
	if !by.Ours() {
		vmi.Status = virtv1.VirtualMachineInstanceStatus{}
	}
	vmi.Status.Phase = virtv1.Pending
	vmi.Status.RuntimeUser = runtimeUser
	return nil
}

// DefaultNetwork gives a spec that names no network at all the pod network, unless it refuses one.
func (d Defaulter) DefaultNetwork(namespace string, spec *virtv1.VirtualMachineInstanceSpec) error {
	attach := spec.Domain.Devices.AutoattachPodInterface
	if len(spec.Networks) > 0 || len(spec.Domain.Devices.Interfaces) > 0 || attach != nil && !*attach {
		return nil
	}
	var nic *virtv1.Interface
	switch binding := d.Policy.NetworkInterface; {
	case d.tenant(namespace):
		nic = &virtv1.Interface{Name: virtv1.DefaultPodNetwork().Name, Binding: &virtv1.PluginBinding{Name: l2bridge}}
	case binding == "masquerade":
		nic = virtv1.DefaultMasqueradeNetworkInterface()
	case binding == "" || binding == "bridge":
		if !d.Policy.BridgeOnPod {
			return errors.New("bridge interface is not enabled in kubevirt-config")
		}
		nic = virtv1.DefaultBridgeNetworkInterface()
	case binding == "slirp":
		return errors.New("slirp interface is deprecated as of v1.3")
	default:
		return errors.New("defaultNetworkInterface " + binding + " is unknown; set masquerade or bridge in the KubeVirt object")
	}
	spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	spec.Domain.Devices.Interfaces = []virtv1.Interface{*nic}
	return nil
}

// disksOfVolumes gives every volume that has neither disk nor file system a disk, as published manifests rely on, and every
// disk without a target the default one.
func disksOfVolumes(spec *virtv1.VirtualMachineInstanceSpec) {
	devices := &spec.Domain.Devices
	used := map[string]bool{}
	for _, disk := range devices.Disks {
		used[disk.Name] = true
	}
	for _, fs := range devices.Filesystems {
		used[fs.Name] = true
	}
	for _, v := range spec.Volumes {
		if !used[v.Name] && v.MemoryDump == nil && v.ContainerPath == nil {
			devices.Disks = append(devices.Disks, virtv1.Disk{Name: v.Name})
		}
	}
	for i := range devices.Disks {
		virtv1.SetDefaults_DiskDevice(&devices.Disks[i].DiskDevice)
	}
}

// defaultCPU fills in the topology: sockets follow the CPU request when nothing is said, and leave room to grow.
func defaultCPU(spec *virtv1.VirtualMachineInstanceSpec) {
	if spec.Domain.CPU == nil {
		spec.Domain.CPU = &virtv1.CPU{}
	}
	cpu := spec.Domain.CPU
	if cpu.Sockets == 0 && cpu.Cores == 0 && cpu.Threads == 0 {
		cpu.Sockets = requestedCPUs(spec.Domain.Resources)
	}
	cpu.Sockets, cpu.Cores, cpu.Threads = max(cpu.Sockets, 1), max(cpu.Cores, 1), max(cpu.Threads, 1)
	if cpu.MaxSockets == 0 {
		perSocket := cpu.Cores * cpu.Threads
		cpu.MaxSockets = max(cpu.Sockets, min(cpu.Sockets*hotplugRatio, maxVCPUs/perSocket))
	}
}

func requestedCPUs(r virtv1.ResourceRequirements) uint32 {
	for _, list := range []corev1.ResourceList{r.Limits, r.Requests} {
		if q := list.Cpu(); !q.IsZero() {
			return uint32(q.Value()) // rounds up
		}
	}
	return 1
}

// KeepStatus undoes what a requester may not change: the status of a VMI belongs to Patchbay, edits by others are dropped
// without an error, as clients that write whole objects back expect.
func KeepStatus(old, vmi *virtv1.VirtualMachineInstance, by Requester) {
	if !by.Ours() {
		old.Status.DeepCopyInto(&vmi.Status)
	}
}

func addFinalizer(meta *metav1.ObjectMeta, name string) {
	if !slices.Contains(meta.Finalizers, name) {
		meta.Finalizers = append(meta.Finalizers, name)
	}
}
