package launcherpod

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu"
)

// What a pod needs besides its guest's memory.
const (
	overheadBase   = 64 << 20 // launcher, QEMU's own heap, device rings, the seed
	overheadPerCPU = 8 << 20  // stacks and translation caches of a virtual CPU
	pageTableShare = 512      // one byte of page tables for so many of guest memory

	defaultCPUAllocationRatio = 10
	passtOverhead             = 250 << 20 // the figure that users of the binding plan with
	ephemeralOverhead         = 50 * 1000 * 1000
)

// CPUs is the number of virtual CPUs.
func CPUs(vmi *virtv1.VirtualMachineInstance) int64 {
	cpu := vmi.Spec.Domain.CPU
	if cpu == nil {
		return 1
	}
	return int64(max(cpu.Sockets, 1)) * int64(max(cpu.Cores, 1)) * int64(max(cpu.Threads, 1))
}

// GuestMemory is the memory that the guest sees at its start.
func GuestMemory(vmi *virtv1.VirtualMachineInstance) resource.Quantity {
	domain := vmi.Spec.Domain
	if m := domain.Memory; m != nil && m.Guest != nil {
		return m.Guest.DeepCopy()
	}
	if q, ok := domain.Resources.Requests[corev1.ResourceMemory]; ok {
		return q.DeepCopy()
	}
	return domain.Resources.Limits.Memory().DeepCopy()
}

// Overhead is the memory that the pod needs besides its guest's.
func Overhead(c Cluster, vmi *virtv1.VirtualMachineInstance) resource.Quantity {
	guest := GuestMemory(vmi)
	sum := resource.NewQuantity(overheadBase+overheadPerCPU*CPUs(vmi)+guest.Value()/pageTableShare, resource.BinarySI)
	plugins := map[string]bool{}
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		if nic.PasstBinding != nil {
			sum.Add(*resource.NewQuantity(passtOverhead, resource.BinarySI))
		}
		if nic.Binding == nil || plugins[nic.Binding.Name] {
			continue
		}
		plugins[nic.Binding.Name] = true
		if o := c.Plugins[nic.Binding.Name].ComputeResourceOverhead; o != nil {
			sum.Add(*o.Requests.Memory())
		}
	}
	if m := vmi.Spec.Domain.Memory; m != nil && m.ReservedOverhead != nil && m.ReservedOverhead.AddedOverhead != nil {
		sum.Add(*m.ReservedOverhead.AddedOverhead)
	}
	return *sum
}

func podResources(r Request) (corev1.ResourceRequirements, error) {
	domain := r.VMI.Spec.Domain
	requests, limits := domain.Resources.Requests.DeepCopy(), domain.Resources.Limits.DeepCopy()
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	if limits == nil {
		limits = corev1.ResourceList{}
	}
	addCPU(r, requests, limits)
	if err := addMemory(r, requests, limits); err != nil {
		return corev1.ResourceRequirements{}, err
	}
	storage := requests[corev1.ResourceEphemeralStorage]
	storage.Add(*resource.NewQuantity(ephemeralOverhead, resource.DecimalSI))
	requests[corev1.ResourceEphemeralStorage] = storage
	if limit, ok := limits[corev1.ResourceEphemeralStorage]; ok {
		limit.Add(*resource.NewQuantity(ephemeralOverhead, resource.DecimalSI))
		limits[corev1.ResourceEphemeralStorage] = limit
	}
	addNetworkResources(r, requests, limits)
	addKVM(r, requests, limits)
	if len(limits) == 0 {
		limits = nil
	}
	return corev1.ResourceRequirements{Requests: requests, Limits: limits}, nil
}

func addCPU(r Request, requests, limits corev1.ResourceList) {
	cpus := CPUs(r.VMI)
	if r.VMI.IsCPUDedicated() {
		whole := *resource.NewQuantity(cpus, resource.DecimalSI)
		requests[corev1.ResourceCPU], limits[corev1.ResourceCPU] = whole, whole
		return
	}
	_, requested := requests[corev1.ResourceCPU]
	_, limited := limits[corev1.ResourceCPU]
	if requested || limited { // a limit alone becomes the request
		return
	}
	ratio := int64(r.Cluster.CPUAllocationRatio)
	if ratio <= 0 {
		ratio = defaultCPUAllocationRatio
	}
	requests[corev1.ResourceCPU] = *resource.NewMilliQuantity(cpus*1000/ratio, resource.DecimalSI)
}

func addMemory(r Request, requests, limits corev1.ResourceList) error {
	overhead := Overhead(r.Cluster, r.VMI)
	requested, ok := requests[corev1.ResourceMemory]
	if !ok {
		requested = GuestMemory(r.VMI)
	}
	if requested.IsZero() {
		return fmt.Errorf("no memory requested: set spec.domain.memory.guest of %s/%s", r.VMI.Namespace, r.VMI.Name)
	}
	if m := r.VMI.Spec.Domain.Memory; m != nil && m.Hugepages != nil {
		pages := corev1.ResourceName(corev1.ResourceHugePagesPrefix + m.Hugepages.PageSize)
		guest := GuestMemory(r.VMI)
		requests[pages], limits[pages] = guest, guest
		requests[corev1.ResourceMemory] = overhead
		if _, ok := limits[corev1.ResourceMemory]; ok {
			limits[corev1.ResourceMemory] = overhead
		}
		return nil
	}
	if !r.VMI.Spec.Domain.Resources.OvercommitGuestOverhead {
		requested.Add(overhead)
	}
	requests[corev1.ResourceMemory] = requested
	if limit, ok := limits[corev1.ResourceMemory]; ok {
		limit.Add(overhead)
		limits[corev1.ResourceMemory] = limit
	} else if r.VMI.IsCPUDedicated() { // a pod gets whole CPUs only in the Guaranteed class
		limits[corev1.ResourceMemory] = requested
	}
	return nil
}

// addNetworkResources asks for one device per network whose attachment names a resource.
func addNetworkResources(r Request, requests, limits corev1.ResourceList) {
	for _, n := range r.VMI.Spec.Networks {
		if n.Multus == nil {
			continue
		}
		namespace, name := AttachmentKey(r.VMI.Namespace, n.Multus.NetworkName)
		device := corev1.ResourceName(r.NetworkResources[namespace+"/"+name])
		if device == "" {
			continue
		}
		for _, list := range []corev1.ResourceList{requests, limits} {
			count := list[device]
			count.Add(*resource.NewQuantity(1, resource.DecimalSI))
			list[device] = count
		}
	}
}

// addKVM asks for /dev/kvm, also when it is the machine's own specification that does.
func addKVM(r Request, requests, limits corev1.ResourceList) {
	_, requested := requests[qemu.KVMResource]
	_, limited := limits[qemu.KVMResource]
	if r.KVM || requested || limited {
		one := *resource.NewQuantity(1, resource.DecimalSI)
		requests[qemu.KVMResource], limits[qemu.KVMResource] = one, one
	}
}
