package admission

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
)

// reservedLabels say where a VMI runs and for whom; a user who set them could take over another's migration. Other labels of the
// domain are free.
var reservedLabels = []string{
	virtv1.CreatedByLabel, virtv1.MigrationJobLabel, virtv1.NodeNameLabel,
	virtv1.MigrationTargetNodeNameLabel, virtv1.NodeSchedulable, virtv1.InstallStrategyLabel,
}

// ValidateVM decides on a VM that is created (old is nil) or changed.
func ValidateVM(old, vm *virtv1.VirtualMachine, policy Policy) Causes {
	var c Causes
	root := field.NewPath("spec")
	if vm.Spec.Template == nil {
		c.required(root.Child("template"), "missing virtual machine template.")
		return c
	}
	c = ValidateSpec(root.Child("template", "spec"), &vm.Spec.Template.Spec, policy, old == nil)
	return append(c, runStrategy(root, vm)...)
}

func runStrategy(root *field.Path, vm *virtv1.VirtualMachine) Causes {
	var c Causes
	known := []virtv1.VirtualMachineRunStrategy{
		virtv1.RunStrategyAlways, virtv1.RunStrategyHalted, virtv1.RunStrategyManual,
		virtv1.RunStrategyRerunOnFailure, virtv1.RunStrategyOnce, virtv1.RunStrategyWaitAsReceiver,
	}
	running, strategy := vm.Spec.Running, vm.Spec.RunStrategy
	switch {
	case running != nil && strategy != nil:
		c.invalid(root.Child("running"),
			"Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead")
	case running == nil && strategy == nil:
		c.invalid(root.Child("running"), "RunStrategy must be specified")
	}
	if strategy != nil && !slices.Contains(known, *strategy) {
		c.invalid(root.Child("runStrategy"), "Invalid RunStrategy (%s)", *strategy)
	}
	return c
}

// ValidateVMI decides on a VMI that a requester creates, after DefaultVMI.
func ValidateVMI(vmi *virtv1.VirtualMachineInstance, by Requester, policy Policy) Causes {
	c := changedLabels(nil, vmi.Labels, by, "creation")
	root := field.NewPath("spec")
	c = append(c, memory(root, &vmi.Spec)...)
	return append(c, ValidateSpec(root, &vmi.Spec, policy, true)...)
}

// memory is not asked of templates: an instance type may bring it.
func memory(root *field.Path, spec *virtv1.VirtualMachineInstanceSpec) Causes {
	var c Causes
	m, requests := spec.Domain.Memory, spec.Domain.Resources.Requests
	if requests.Memory().IsZero() && (m == nil || m.Guest == nil && m.Hugepages == nil) {
		c.required(nil, "no memory requested, at least one of '%s', '%s' or '%s' must be set",
			root.Child("domain", "memory", "guest"), root.Child("domain", "memory", "hugepages", "size"),
			root.Child("domain", "resources", "requests", "memory"))
	}
	return c
}

// changedLabels refuses changes of reserved labels by anyone but Patchbay.
func changedLabels(before, after map[string]string, by Requester, verb string) Causes {
	var c Causes
	if by.Ours() || maps.Equal(onlyReserved(before), onlyReserved(after)) {
		return nil
	}
	c.notSupported(field.NewPath("metadata", "labels"),
		"%s of the following reserved kubevirt.io/ labels on a VMI object is prohibited", verb)
	return c
}

func onlyReserved(all map[string]string) map[string]string {
	kept := map[string]string{}
	for _, name := range reservedLabels {
		if value, ok := all[name]; ok {
			kept[name] = value
		}
	}
	return kept
}

// ValidateVMIUpdate decides on a change of a VMI. Users change networks and disks through the VM, never through the VMI. The
// status that users send is replaced before this is asked (KeepStatus).
func ValidateVMIUpdate(old, vmi *virtv1.VirtualMachineInstance, by Requester) Causes {
	var c Causes
	switch {
	case by.Controller():
		return nil
	case by.Node() != "":
		return nodeUpdate(old, vmi, by.Node())
	}
	if !equality.Semantic.DeepEqual(old.Spec, vmi.Spec) {
		c.notSupported(nil, "update of VMI object is restricted")
	}
	return append(c, changedLabels(old.Labels, vmi.Labels, by, "modification")...)
}

// nodeUpdate is what the agent of a node may do: report about VMIs that run on its node or are arriving there. Only the
// controller chooses a migration's target.
func nodeUpdate(old, vmi *virtv1.VirtualMachineInstance, node string) Causes {
	var c Causes
	if old.Status.NodeName != node && migrationTarget(old) != node {
		c.notSupported(nil, "Node restriction, virt-handler is only allowed to modify VMIs it owns")
		return c
	}
	if migrationTarget(old) != migrationTarget(vmi) ||
		old.Labels[virtv1.MigrationTargetNodeNameLabel] != vmi.Labels[virtv1.MigrationTargetNodeNameLabel] {
		c.notSupported(nil, "Node restriction, virt-handler is not allowed to set the target of a migration")
	}
	if moved := vmi.Status.NodeName; moved != old.Status.NodeName && moved != migrationTarget(old) {
		c.notSupported(nil, "Node restriction, virt-handler is not allowed to move a VMI to a node that is not the target of its migration")
	}
	return c
}

func migrationTarget(vmi *virtv1.VirtualMachineInstance) string {
	if vmi.Status.MigrationState == nil {
		return ""
	}
	return vmi.Status.MigrationState.TargetNode
}

// ValidateMigrationPolicy decides on a MigrationPolicy.
func ValidateMigrationPolicy(p *migrationsv1.MigrationPolicy) Causes {
	var c Causes
	root := field.NewPath("spec")
	if n := p.Spec.CompletionTimeoutPerGiB; n != nil && *n < 0 {
		c.invalid(root.Child("completionTimeoutPerGiB"), "must not be negative")
	}
	if q := p.Spec.BandwidthPerMigration; q != nil && q.Sign() < 0 {
		c.invalid(root.Child("bandwidthPerMigration"), "must not be negative")
	}
	return c
}

// plain is a refusal that is a single sentence without a field.
func plain(message string) Causes {
	return Causes{metav1.StatusCause{Type: metav1.CauseTypeFieldValueNotSupported, Message: message}}
}
