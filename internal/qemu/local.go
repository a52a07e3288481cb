package qemu

import virtv1 "kubevirt.io/api/core/v1"

// LocalDisks are the block nodes of a guest's disks whose content lives in its pod and changes: a migration has to copy them.
func LocalDisks(vmi *virtv1.VirtualMachineInstance) []string {
	var nodes []string
	for i, disk := range vmi.Spec.Domain.Devices.Disks {
		for _, v := range vmi.Spec.Volumes {
			if v.Name == disk.Name && !readOnly(disk) && (v.ContainerDisk != nil || v.EmptyDisk != nil || v.Ephemeral != nil) {
				nodes = append(nodes, DiskNode(i))
			}
		}
	}
	return nodes
}
