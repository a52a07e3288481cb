package migrate

import (
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
)

// An eviction's source decides how urgent the migration is that follows from it.
func TestEvacuationsOfTheDeschedulerWait(t *testing.T) {
	for by, want := range map[string]virtv1.MigrationPriority{
		"":                        virtv1.PrioritySystemCritical,
		"somebody else":           virtv1.PrioritySystemCritical,
		"sigs.k8s.io/descheduler": virtv1.PrioritySystemMaintenance,
	} {
		w := newWorld()
		vmi := w.view.VMI
		vmi.Status.Conditions = []virtv1.VirtualMachineInstanceCondition{{Type: virtv1.VirtualMachineInstanceIsMigratable, Status: "True"}}
		strategy := virtv1.EvictionStrategyLiveMigrate
		vmi.Spec.EvictionStrategy = &strategy
		verdict := Evict(Eviction{Pod: w.view.Source, VMI: vmi})
		if verdict.Allowed || !verdict.Evacuate {
			t.Fatalf("asked by %q: %+v", by, verdict)
		}
		MarkEvacuation(vmi, "node-1", SourceOf(by), epoch)
		if again := Evict(Eviction{Pod: w.view.Source, VMI: vmi}); again.Allowed || again.Evacuate {
			t.Errorf("asked again by %q: %+v", by, again)
		}
		step := Evacuate(Evacuation{Now: epoch, VMI: vmi})
		if step.Create == nil || *step.Create.Spec.Priority != want {
			t.Errorf("asked by %q: %+v, want priority %s", by, step.Create, want)
		}
		vmi.Status.NodeName = "node-2"
		forgotten := Evacuate(Evacuation{Now: epoch, VMI: vmi}).VMI
		if forgotten == nil || forgotten.Annotations[virtv1.EvictionSourceAnnotation] != "" || asked(forgotten) {
			t.Errorf("after it has moved: %+v", forgotten)
		}
	}
}
