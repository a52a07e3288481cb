package migrate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"time"
)

// Eviction is what is known when somebody asks for the eviction of a machine's pod.
type Eviction struct {
	Pod *corev1.Pod
	VMI *virtv1.VirtualMachineInstance // nil: it does not exist
	// Default is the cluster's strategy for machines that name none; nil: None.
	Default *virtv1.EvictionStrategy
}

// Verdict answers an eviction. Clients know the refusals' texts, and ask again after one.
type Verdict struct {
	Allowed  bool
	Refusal  string
	Evacuate bool // note on the instance that its node is to be emptied of it
}

// Evict decides about an eviction.
func Evict(e Eviction) Verdict {
	vmi := e.VMI
	if vmi == nil || over(e.Pod) || vmi.IsFinal() || vmi.DeletionTimestamp != nil {
		return Verdict{Allowed: true}
	}
	evacuates := false
	switch strategyOf(vmi, e.Default) {
	case virtv1.EvictionStrategyLiveMigrate:
		if !vmi.IsMigratable() {
			return Verdict{Refusal: fmt.Sprintf("VMI %s is configured with an eviction strategy but is not live-migratable", vmi.Name)}
		}
		evacuates = true
	case virtv1.EvictionStrategyLiveMigrateIfPossible:
		evacuates = vmi.IsMigratable()
	case virtv1.EvictionStrategyExternal:
		evacuates = true
	}
	node := e.Pod.Spec.NodeName
	switch {
	case !evacuates:
		return Verdict{Allowed: true}
	case isTarget(e.Pod, vmi):
		return Verdict{Refusal: "Eviction request for target Pod"}
	case node != vmi.Status.NodeName:
		return Verdict{Allowed: true} // the guest is not there
	}
	text := fmt.Sprintf("Eviction triggered evacuation of VMI %q", vmi.Namespace+"/"+vmi.Name)
	if vmi.Status.EvacuationNodeName == node {
		return Verdict{Refusal: "Evacuation in progress: " + text}
	}
	return Verdict{Refusal: text, Evacuate: true}
}

func strategyOf(vmi *virtv1.VirtualMachineInstance, otherwise *virtv1.EvictionStrategy) virtv1.EvictionStrategy {
	switch {
	case vmi.Spec.EvictionStrategy != nil:
		return *vmi.Spec.EvictionStrategy
	case otherwise != nil:
		return *otherwise
	}
	return virtv1.EvictionStrategyNone
}

// isTarget says that a guest is on its way to a pod.
func isTarget(pod *corev1.Pod, vmi *virtv1.VirtualMachineInstance) bool {
	if pod.Labels[virtv1.MigrationJobLabel] == "" || pod.Spec.NodeName == vmi.Status.NodeName {
		return false
	}
	ms := vmi.Status.MigrationState
	return ms == nil || string(ms.MigrationUID) != pod.Labels[virtv1.MigrationJobLabel] || !ms.Completed
}

// MarkEvacuation notes that a node is to be emptied of an instance.
func MarkEvacuation(vmi *virtv1.VirtualMachineInstance, node, source string, now time.Time) {
	vmi.Status.EvacuationNodeName = node
	setEvictionRequested(vmi, now)
	if source != "" {
		if vmi.Annotations == nil {
			vmi.Annotations = map[string]string{}
		}
		vmi.Annotations[virtv1.EvictionSourceAnnotation] = source
	}
}

func setEvictionRequested(vmi *virtv1.VirtualMachineInstance, now time.Time) {
	for _, c := range vmi.Status.Conditions {
		if c.Type == virtv1.VirtualMachineInstanceEvictionRequested {
			return
		}
	}
	vmi.Status.Conditions = append(vmi.Status.Conditions, virtv1.VirtualMachineInstanceCondition{
		Type: virtv1.VirtualMachineInstanceEvictionRequested, Status: corev1.ConditionTrue,
		Reason: virtv1.VirtualMachineInstanceReasonEvictionRequested, Message: "the node is to be emptied of this virtual machine",
		LastTransitionTime: metav1.NewTime(now),
	})
}

// Evacuation is what is known of an instance whose node may have to be emptied.
type Evacuation struct {
	Now     time.Time
	VMI     *virtv1.VirtualMachineInstance
	Default *virtv1.EvictionStrategy
	// Drained says that the node carries the (deprecated) taint that asks for its evacuation.
	Drained bool
	// Active says that a migration of the instance is not over.
	Active bool
}

// EvacuationStep is what to do about it.
type EvacuationStep struct {
	VMI    *virtv1.VirtualMachineInstance          // to be written; nil: it stays as it is
	Create *virtv1.VirtualMachineInstanceMigration // nil: nothing
}

// Evacuate decides whether an instance is migrated away, and forgets a wish that has come true.
func Evacuate(e Evacuation) EvacuationStep {
	vmi := e.VMI
	wanted := vmi.Status.EvacuationNodeName
	switch {
	case vmi.IsFinal() || vmi.DeletionTimestamp != nil || vmi.Status.NodeName == "":
		return EvacuationStep{}
	case wanted != "" && wanted != vmi.Status.NodeName || wanted == "" && asked(vmi):
		return EvacuationStep{VMI: forgetEvacuation(vmi)}
	case e.Active || !vmi.IsRunning() || !vmi.IsMigratable():
		return EvacuationStep{}
	}
	strategy := strategyOf(vmi, e.Default)
	migrates := strategy == virtv1.EvictionStrategyLiveMigrate || strategy == virtv1.EvictionStrategyLiveMigrateIfPossible
	if !migrates || wanted == "" && !e.Drained {
		return EvacuationStep{}
	}
	return EvacuationStep{Create: evacuation(vmi)}
}

func asked(vmi *virtv1.VirtualMachineInstance) bool {
	for _, c := range vmi.Status.Conditions {
		if c.Type == virtv1.VirtualMachineInstanceEvictionRequested {
			return true
		}
	}
	return false
}

func forgetEvacuation(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstance {
	to := vmi.DeepCopy()
	to.Status.EvacuationNodeName = ""
	to.Status.Conditions = nil
	for _, c := range vmi.Status.Conditions {
		if c.Type != virtv1.VirtualMachineInstanceEvictionRequested {
			to.Status.Conditions = append(to.Status.Conditions, c)
		}
	}
	delete(to.Annotations, virtv1.EvictionSourceAnnotation)
	return to
}

func evacuation(vmi *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstanceMigration {
	priority := virtv1.PrioritySystemCritical
	if vmi.Annotations[virtv1.EvictionSourceAnnotation] == SourceDescheduler {
		priority = virtv1.PrioritySystemMaintenance
	}
	return &virtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "kubevirt-evacuation-", Namespace: vmi.Namespace,
			Annotations: map[string]string{virtv1.EvacuationMigrationAnnotation: vmi.Status.NodeName},
		},
		Spec: virtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi.Name, Priority: &priority},
	}
}

// SourceDescheduler is who asks for evictions that are not urgent.
const SourceDescheduler = "descheduler"

// SourceOf is the source of an eviction that somebody asks for; empty: nobody that is known.
func SourceOf(requestedBy string) string {
	if requestedBy == "sigs.k8s.io/descheduler" {
		return SourceDescheduler
	}
	return ""
}
