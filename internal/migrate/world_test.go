package migrate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// world is a cluster with one machine on node-1 and one migration of it.
type world struct {
	view View
	made bool // the migration exists
	log  []string
}

func newWorld() *world {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "vmi", Labels: map[string]string{"app": "web"}}}
	vmi.Status.Phase, vmi.Status.NodeName = virtv1.Running, "node-1"
	return &world{view: View{
		Now: epoch, VMI: vmi, Source: pod("web-1", "node-1", true), Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		Migration: &virtv1.VirtualMachineInstanceMigration{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: "move", UID: "move", CreationTimestamp: metav1.NewTime(epoch),
				Finalizers: []string{virtv1.VirtualMachineInstanceMigrationFinalizer},
			},
			Spec: virtv1.VirtualMachineInstanceMigrationSpec{VMIName: "web"},
		},
	}}
}

func pod(name, node string, up bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch)}, Spec: corev1.PodSpec{NodeName: node}}
	p.Status.Phase = corev1.PodPending
	if up {
		p.Status.Phase = corev1.PodRunning
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	}
	return p
}

// settle steps until nothing changes any more.
func (w *world) settle() {
	if !w.made {
		return
	}
	for range 20 {
		before := w.view.Migration
		d := Step(w.view)
		w.carryOut(d)
		if d.After > 1 {
			w.tell("look again after %s", d.After)
		}
		if d.After != 1 && d.VMI == nil && !d.CreateTarget && !d.DeleteTarget && equality.Semantic.DeepEqual(before, w.view.Migration) {
			return
		}
	}
	w.tell("IT DOES NOT SETTLE")
}

func (w *world) carryOut(d Decision) {
	if d.CreateTarget {
		w.tell("create the target's pod")
		w.view.Target = pod("web-2", "", false)
		w.view.Target.CreationTimestamp = metav1.NewTime(w.view.Now)
	}
	if d.DeleteTarget {
		w.tell("delete the target's pod")
		w.view.Target = nil
	}
	if old := w.view.Migration.Status.Phase; d.Migration.Status.Phase != old {
		w.tell("phase %s", d.Migration.Status.Phase)
	}
	if ms := d.Migration.Status.MigrationState; ms != nil && ms.Failed && w.view.Migration.Status.MigrationState == nil {
		w.tell("it says: %s", ms.FailureReason)
	}
	for _, c := range d.Migration.Status.Conditions[len(w.view.Migration.Status.Conditions):] {
		w.tell("condition %s", c.Type)
	}
	if len(d.Migration.Finalizers) < len(w.view.Migration.Finalizers) {
		w.tell("done")
	}
	w.view.Migration = d.Migration
	if d.VMI != nil {
		w.view.VMI = d.VMI
		w.tell("instance: %s", describe(d.VMI))
	}
	for _, e := range d.Events {
		w.tell("event %s %s: %s", e.Type, e.Reason, e.Message)
	}
}

func describe(vmi *virtv1.VirtualMachineInstance) string {
	words := []string{"on " + vmi.Status.NodeName}
	if to := vmi.Labels[virtv1.MigrationTargetNodeNameLabel]; to != "" {
		words = append(words, "labelled for "+to)
	}
	ms := vmi.Status.MigrationState
	if ms == nil {
		return strings.Join(words, ", ")
	}
	words = append(words, fmt.Sprintf("%s/%s to %s/%s", ms.SourceNode, ms.SourcePod, ms.TargetNode, ms.TargetPod))
	if ms.MigrationPolicyName != nil {
		words = append(words, "policy "+*ms.MigrationPolicyName)
	}
	for is, word := range map[bool]string{ms.AbortRequested: "abort requested", ms.Failed: "failed: " + ms.FailureReason, ms.Completed && !ms.Failed: "completed"} {
		if is {
			words = append(words, word)
		}
	}
	slices.Sort(words[1:])
	return strings.Join(words, ", ")
}

func (w *world) tell(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// events are what can happen. Their arguments follow in the script.
var happenings = map[string]func(w *world, args []string){
	"created": func(w *world, args []string) {
		w.made = true
		for _, a := range args {
			key, value, _ := strings.Cut(a, "=")
			switch key {
			case "priority":
				p := virtv1.MigrationPriority(value)
				w.view.Migration.Spec.Priority = &p
			case "evacuation":
				w.view.Migration.Annotations = map[string]string{virtv1.EvacuationMigrationAnnotation: "node-1"}
			case "unschedulable":
				w.view.Migration.Annotations = map[string]string{virtv1.MigrationUnschedulablePodTimeoutSecondsAnnotation: value}
			}
		}
	},
	"time": func(w *world, args []string) {
		d, _ := time.ParseDuration(args[0])
		w.view.Now = w.view.Now.Add(d)
	},
	"pod": func(w *world, args []string) {
		if w.view.Target == nil {
			return
		}
		switch args[0] {
		case "runs":
			*w.view.Target = *pod("web-2", "node-2", true)
		case "ends":
			w.view.Target.Status.Phase, w.view.Target.Status.Message = corev1.PodFailed, "the node was low on memory"
		case "vanishes":
			w.view.Target = nil
		case "fits-nowhere":
			w.view.Target.Status.Conditions = []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/2 nodes are available",
			}}
		}
	},
	"source-pod-ends": func(w *world, _ []string) { w.view.Source.Status.Phase = corev1.PodFailed },
	"target-listens": func(w *world, _ []string) {
		if ms := w.state(); ms != nil && !ms.Completed {
			ms.TargetNodeAddress, ms.TargetDirectMigrationNodePorts = "172.30.0.12", map[string]int{"40001": 0}
		}
	},
	"source-begins": func(w *world, _ []string) {
		if ms := w.state(); ms != nil && !ms.Completed && !ms.AbortRequested && ms.TargetNodeAddress != "" {
			ms.StartTimestamp = new(metav1.NewTime(w.view.Now))
		}
	},
	"source-fails": func(w *world, args []string) {
		if ms := w.state(); ms != nil && !ms.Completed && ms.StartTimestamp != nil {
			ms.Completed, ms.Failed, ms.FailureReason = true, true, strings.Join(args, " ")
		}
	},
	"target-takes-over": func(w *world, _ []string) {
		if ms := w.state(); ms != nil && !ms.Completed && ms.StartTimestamp != nil && w.view.Target != nil && !over(w.view.Target) {
			ms.Completed = true
			w.view.VMI.Status.NodeName = "node-2"
			w.view.Source.Status.Phase = corev1.PodSucceeded
		}
	},
	"cancelled": func(w *world, _ []string) { w.view.Migration.DeletionTimestamp = &metav1.Time{Time: w.view.Now} },
	"machine": func(w *world, args []string) {
		if w.view.VMI == nil {
			return
		}
		switch args[0] {
		case "ends":
			w.view.VMI.Status.Phase = virtv1.Failed
		case "vanishes":
			w.view.VMI = nil
		case "pauses":
			w.view.VMI.Status.Phase = virtv1.Scheduled
		case "cannot-migrate":
			w.view.VMI.Status.Conditions = []virtv1.VirtualMachineInstanceCondition{{
				Type: virtv1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionFalse, Reason: "DisksNotLiveMigratable", Message: "a disk is local",
			}}
		}
	},
	// others N phase node priority: N migrations of other machines
	"others": func(w *world, args []string) {
		count, priority := 0, 0
		fmt.Sscan(args[0], &count)
		fmt.Sscan(args[3], &priority)
		w.view.Others = nil
		for n := range count {
			name := fmt.Sprintf("other-%d", n)
			w.view.Others = append(w.view.Others, Load{
				UID: types.UID(name), VMI: types.NamespacedName{Namespace: "default", Name: name},
				Phase: virtv1.VirtualMachineInstanceMigrationPhase(args[1]), Source: args[2], Priority: priority, Created: epoch.Add(time.Minute),
			})
		}
	},
	"rival": func(w *world, args []string) {
		w.view.Others = []Load{{
			UID: "rival", VMI: types.NamespacedName{Namespace: "default", Name: "web"}, Phase: virtv1.VirtualMachineInstanceMigrationPhase(args[0]),
			Source: "node-1", Created: epoch.Add(-time.Minute),
		}}
	},
	"failures": func(w *world, args []string) {
		w.view.Failures = nil
		for _, a := range args {
			d, _ := time.ParseDuration(a)
			w.view.Failures = append(w.view.Failures, w.view.Now.Add(-d))
		}
	},
}

func (w *world) state() *virtv1.VirtualMachineInstanceMigrationState {
	if w.view.VMI == nil || w.view.VMI.IsFinal() {
		return nil
	}
	w.view.VMI = w.view.VMI.DeepCopy()
	return w.view.VMI.Status.MigrationState
}
