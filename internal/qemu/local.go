package qemu

import virtv1 "kubevirt.io/api/core/v1"

// LocalDisk is a disk whose content lives in its guest's pod and changes: a migration has to copy it.
type LocalDisk struct {
	Node string // block node
	Base string // path in the pod of what it lies over and an image has brought; empty: nothing, or something that a claim holds
}

// LocalDisks are those of a guest.
func LocalDisks(vmi *virtv1.VirtualMachineInstance) []LocalDisk {
	var disks []LocalDisk
	for i, disk := range vmi.Spec.Domain.Devices.Disks {
		for n, v := range vmi.Spec.Volumes {
			switch {
			case v.Name != disk.Name || readOnly(disk):
			case v.ContainerDisk != nil:
				disks = append(disks, LocalDisk{DiskNode(i), containerDiskPath(&vmi.Spec.Volumes[n])})
			case v.EmptyDisk != nil || v.Ephemeral != nil:
				disks = append(disks, LocalDisk{Node: DiskNode(i)})
			}
		}
	}
	return disks
}
