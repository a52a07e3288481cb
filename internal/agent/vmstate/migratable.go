package vmstate

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

const messageUnshared = "cannot migrate VMI: PVC %s is not shared, live migration requires that all PVCs must be shared (using ReadWriteMany access mode)"

const messageBridge = "cannot migrate VMI which does not use masquerade or a migratable plugin to connect to the pod network"

// migratablePlugins are network binding plugins whose registration says that they migrate.
var migratablePlugins = []string{"l2bridge", "passt"}

// describeMigration writes whether and how the instance can be migrated live.
func (s *step) describeMigration() {
	vmi := s.o.VMI
	s.r.Status.MigrationMethod = virtv1.LiveMigration
	if slices.ContainsFunc(vmi.Spec.Volumes, isLocal) {
		s.r.Status.MigrationMethod = virtv1.BlockMigration
	}
	switch {
	case podNetworkHolds(vmi):
		s.setCondition(virtv1.VirtualMachineInstanceIsMigratable, false, reasonBridgeOnPodNet, messageBridge)
	case slices.ContainsFunc(vmi.Spec.Volumes, func(v virtv1.Volume) bool { return v.HostDisk != nil }):
		s.setCondition(virtv1.VirtualMachineInstanceIsMigratable, false, reasonDisks, "cannot migrate VMI with a disk on the node's own file system (hostDisk)")
	case unshared(vmi) != "":
		s.setCondition(virtv1.VirtualMachineInstanceIsMigratable, false, reasonDisks, fmt.Sprintf(messageUnshared, unshared(vmi)))
	default:
		s.setCondition(virtv1.VirtualMachineInstanceIsMigratable, true, "", "")
	}
}

// unshared names a claim that pods on one node only can use; empty when there is none.
func unshared(vmi *virtv1.VirtualMachineInstance) string {
	for _, status := range vmi.Status.VolumeStatus {
		claim := status.PersistentVolumeClaimInfo
		writes := slices.ContainsFunc(vmi.Spec.Volumes, func(v virtv1.Volume) bool { return v.Name == status.Name && v.Ephemeral == nil })
		if claim != nil && writes && len(claim.AccessModes) > 0 && !slices.Contains(claim.AccessModes, corev1.ReadWriteMany) {
			return claim.ClaimName
		}
	}
	return ""
}

// isLocal says that a volume's content lives in the pod and has to be copied to the target.
func isLocal(v virtv1.Volume) bool {
	return v.ContainerDisk != nil || v.CloudInitNoCloud != nil || v.CloudInitConfigDrive != nil || v.EmptyDisk != nil || v.Ephemeral != nil
}

// podNetworkHolds says that the way to the pod network would not survive a migration. Other networks never hold a machine.
func podNetworkHolds(vmi *virtv1.VirtualMachineInstance) bool {
	_, allowed := vmi.Annotations[virtv1.AllowPodBridgeNetworkLiveMigrationAnnotation]
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		onPod := slices.ContainsFunc(vmi.Spec.Networks, func(n virtv1.Network) bool { return n.Name == i.Name && n.Pod != nil })
		if !onPod {
			continue
		}
		switch {
		case i.Masquerade != nil || i.PasstBinding != nil:
		case i.Binding != nil && slices.Contains(migratablePlugins, i.Binding.Name):
		case i.Bridge != nil && allowed:
		default:
			return true
		}
	}
	return false
}
