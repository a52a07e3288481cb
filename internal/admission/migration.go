package admission

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

// MigrationContext is what the rules about a new migration know of the cluster.
type MigrationContext struct {
	VMI    *virtv1.VirtualMachineInstance // that it names, nil when there is none
	Others []virtv1.VirtualMachineInstanceMigration
}

// ValidateMigration decides on a migration that a requester creates.
func ValidateMigration(m *virtv1.VirtualMachineInstanceMigration, in MigrationContext, by Requester, policy Policy) Causes {
	c := migrationSpec(m, by, policy)
	if len(c) > 0 {
		return c
	}
	vmi := in.VMI
	switch {
	case vmi == nil:
		return plain(fmt.Sprintf(`the VMI "%s/%s" does not exist`, m.Namespace, m.Spec.VMIName))
	case vmi.IsFinal():
		return plain("Cannot migrate VMI in finalized state.")
	}
	if condition := migratable(vmi); condition != nil && condition.Status == corev1.ConditionFalse && !allowedByDecentralized(m, condition) {
		return plain(fmt.Sprintf("Cannot migrate VMI, Reason: %s, Message: %s", condition.Reason, condition.Message))
	}
	for _, other := range in.Others {
		if other.Spec.VMIName == m.Spec.VMIName && !other.IsFinal() {
			return plain(fmt.Sprintf("in-flight migration detected. Active migration job (%s) is currently already in progress for VMI %s.",
				other.UID, m.Spec.VMIName))
		}
	}
	return nil
}

func migrationSpec(m *virtv1.VirtualMachineInstanceMigration, by Requester, policy Policy) Causes {
	var c Causes
	root := field.NewPath("spec")
	if m.Spec.VMIName == "" {
		c.required(root.Child("vmiName"), "vmiName is missing")
	}
	send, receive := m.Spec.SendTo, m.Spec.Receive
	if (send != nil || receive != nil) && !policy.Gates(GateDecentralizedLiveMigration) {
		c.invalid(root, "%s feature gate is not enabled", GateDecentralizedLiveMigration)
	}
	if send != nil && receive != nil && send.MigrationID != receive.MigrationID {
		c.invalid(root, "sendTo migrationID %s does not match receive migrationID %s", send.MigrationID, receive.MigrationID)
	}
	if m.Spec.Priority != nil && !by.Controller() {
		c.invalid(root.Child("priority"), "Migration priority queue, only virt-controller is allowed to set priority field")
	}
	return c
}

func migratable(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstanceCondition {
	for i := range vmi.Status.Conditions {
		if vmi.Status.Conditions[i].Type == virtv1.VirtualMachineInstanceIsMigratable {
			return &vmi.Status.Conditions[i]
		}
	}
	return nil
}

// allowedByDecentralized: a migration to another cluster copies the disks, so they need not be shared.
func allowedByDecentralized(m *virtv1.VirtualMachineInstanceMigration, condition *virtv1.VirtualMachineInstanceCondition) bool {
	return (m.Spec.SendTo != nil || m.Spec.Receive != nil) && condition.Reason == virtv1.VirtualMachineInstanceReasonDisksNotMigratable
}

// ValidateMigrationUpdate decides on a change of a migration.
func ValidateMigrationUpdate(old, m *virtv1.VirtualMachineInstanceMigration) Causes {
	var c Causes
	if !equality.Semantic.DeepEqual(old.Spec, m.Spec) {
		c.notSupported(nil, "update of Migration object's spec is restricted")
		return c
	}
	if old.IsFinal() {
		return nil
	}
	before, selected := old.Labels[virtv1.MigrationSelectorLabel]
	after, kept := m.Labels[virtv1.MigrationSelectorLabel]
	switch {
	case selected && !kept:
		c.notSupported(nil, "selector label can't be removed from an in-flight migration")
	case selected && before != after:
		c.notSupported(nil, "selector label can't be modified on an in-flight migration")
	}
	return c
}

// DefaultMigration fills in the label that migrations of a VMI are found by and the finalizer of the controller.
func DefaultMigration(m *virtv1.VirtualMachineInstanceMigration) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[virtv1.MigrationSelectorLabel] = m.Spec.VMIName
	addFinalizer(&m.ObjectMeta, virtv1.VirtualMachineInstanceMigrationFinalizer)
}
