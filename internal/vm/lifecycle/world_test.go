package lifecycle

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

// epoch is when every story begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a small API server with one virtual machine in it, and what its kubelets and agents did.
type world struct {
	now      time.Time
	settings Settings
	jitter   float64
	vm       *virtv1.VirtualMachine
	vmi      *virtv1.VirtualMachineInstance
	pods     []*corev1.Pod
	started  map[string]*virtv1.VirtualMachineSpec // by revision name
	claims   map[string]*corev1.PersistentVolumeClaim
	networks map[string]string
	nodes    map[string]*corev1.Node
	offers   []*corev1.Node // what the agents say that nodes have
	uids     int
	version  int
	log      []string
	quota    error // refuses creations
	podsMade map[types.UID]int
}

func newWorld() *world {
	return &world{
		now:      epoch,
		settings: SettingsFrom("patchbay.io/launcher:test", virtv1.KubeVirtConfiguration{}),
		started:  map[string]*virtv1.VirtualMachineSpec{},
		claims:   map[string]*corev1.PersistentVolumeClaim{},
		networks: map[string]string{},
		nodes:    map[string]*corev1.Node{},
		offers:   []*corev1.Node{agentNode("node-1", "kvm"), agentNode("node-2", "kvm")},
		podsMade: map[types.UID]int{},
	}
}

func (w *world) born(o Object, kind string) {
	w.uids++
	o.SetUID(types.UID(fmt.Sprintf("%s-uid-%d", kind, w.uids)))
	o.SetCreationTimestamp(metav1.NewTime(w.now))
	o.SetGeneration(1)
	w.touch(o)
}

func (w *world) touch(o Object) {
	w.version++
	o.SetResourceVersion(fmt.Sprint(w.version))
}

func (w *world) vmView() VMView {
	v := VMView{Now: w.now, Jitter: w.jitter, Settings: w.settings, VM: w.vm.DeepCopy(), VMI: w.vmi.DeepCopy(), Claims: w.claims}
	if w.vmi != nil {
		v.Started = w.started[w.vmi.Status.VirtualMachineRevisionName]
	}
	return v
}

func (w *world) vmiView() VMIView {
	v := VMIView{Now: w.now, Settings: w.settings, VMI: w.vmi.DeepCopy(), Claims: w.claims, Networks: w.networks, Nodes: w.offers}
	for _, p := range w.pods {
		if metav1.IsControlledBy(p, w.vmi) {
			v.Pods = append(v.Pods, p.DeepCopy())
		}
	}
	v.Node = w.nodes[w.vmi.Status.NodeName]
	return v
}

// errStop ends the carrying out of a decision, as a failed precondition does.
type errStop struct{ why string }

func (e errStop) Error() string { return e.why }

// apply carries out an action. versions holds what our own patches of this decision made of the objects.
func (w *world) apply(a Action, versions map[types.UID]string) error {
	switch a := a.(type) {
	case Create:
		return w.create(a)
	case Patch:
		return w.patch(a, versions)
	case Delete:
		w.delete(a.Object, a.GraceSeconds)
	}
	return nil
}

func (w *world) create(a Create) error {
	switch o := a.Object.DeepCopyObject().(type) {
	case *virtv1.VirtualMachineInstance:
		if w.quota != nil {
			return w.quota
		}
		if w.vmi != nil {
			return errStop{"the instance exists already"}
		}
		w.born(o, "vmi")
		w.vmi = o
	case *corev1.Pod:
		if w.quota != nil {
			return w.quota
		}
		if slices.ContainsFunc(w.pods, func(p *corev1.Pod) bool { return p.Name == o.Name }) {
			return errStop{"the pod exists already"}
		}
		w.born(o, "pod")
		o.Status.Phase = corev1.PodPending
		w.pods = append(w.pods, o)
		w.podsMade[metav1.GetControllerOf(o).UID]++
	default: // a revision
		if _, ok := w.started[a.Object.GetName()]; !ok {
			w.started[a.Object.GetName()] = w.vm.Spec.DeepCopy()
		}
	}
	return nil
}

// stored is the object as the server has it; nil when it is gone.
func (w *world) stored(o Object) Object {
	if w.vm != nil && o.GetUID() == w.vm.UID {
		return w.vm
	}
	if w.vmi != nil && o.GetUID() == w.vmi.UID {
		return w.vmi
	}
	for _, p := range w.pods {
		if p.UID == o.GetUID() {
			return p
		}
	}
	return nil
}

func (w *world) patch(a Patch, versions map[types.UID]string) error {
	current := w.stored(a.From)
	if current == nil {
		return errStop{"the object is gone"}
	}
	expected := a.From.GetResourceVersion()
	if v, ok := versions[a.From.GetUID()]; ok {
		expected = v
	}
	if current.GetResourceVersion() != expected {
		return errStop{"the object has changed"}
	}
	w.takeOver(current, a)
	w.touch(current)
	versions[a.From.GetUID()] = current.GetResourceVersion()
	w.collect()
	return nil
}

// takeOver writes what a patch changes: the status, or the rest.
func (w *world) takeOver(current Object, a Patch) {
	switch to := a.To.DeepCopyObject().(type) {
	case *virtv1.VirtualMachine:
		if a.Status {
			w.vm.Status = to.Status
			return
		}
		if !equality.Semantic.DeepEqual(w.vm.Spec, to.Spec) {
			w.vm.Generation++
		}
		w.vm.Spec, w.vm.Finalizers = to.Spec, to.Finalizers
	case *virtv1.VirtualMachineInstance:
		w.vmi.Spec, w.vmi.Status = to.Spec, to.Status
		w.vmi.Labels, w.vmi.Finalizers, w.vmi.OwnerReferences = to.Labels, to.Finalizers, to.OwnerReferences
	case *corev1.Pod:
		pod := current.(*corev1.Pod)
		if a.Status {
			pod.Status = to.Status
			return
		}
		pod.Labels, pod.Annotations = to.Labels, to.Annotations
	}
}

// delete marks or removes an object, and shortens a pod's grace period when it is deleted again.
func (w *world) delete(o Object, grace *int64) {
	if _, ok := w.started[o.GetName()]; ok {
		delete(w.started, o.GetName())
		return
	}
	current := w.stored(o)
	if current == nil {
		return
	}
	if pod, ok := current.(*corev1.Pod); ok {
		seconds := *pod.Spec.TerminationGracePeriodSeconds
		if grace != nil {
			seconds = *grace
		}
		if pod.DeletionTimestamp == nil || seconds < *pod.DeletionGracePeriodSeconds {
			pod.DeletionGracePeriodSeconds = &seconds
			pod.DeletionTimestamp = &metav1.Time{Time: w.now.Add(time.Duration(seconds) * time.Second)}
			w.touch(pod)
		}
		return
	}
	if current.GetDeletionTimestamp() == nil {
		current.SetDeletionTimestamp(&metav1.Time{Time: w.now})
		w.touch(current)
	}
	w.collect()
}

// collect removes objects that are deleted and held by no finalizer.
func (w *world) collect() {
	if w.vmi != nil && w.vmi.DeletionTimestamp != nil && len(w.vmi.Finalizers) == 0 {
		w.vmi = nil
	}
	if w.vm != nil && w.vm.DeletionTimestamp != nil && len(w.vm.Finalizers) == 0 {
		w.vm = nil
	}
}

// run carries out a decision, but at most limit actions; failed is asked for a decision about a refusal.
func (w *world) run(who string, d Decision, limit int, failed func(Action, error) Decision) (done int) {
	versions := map[types.UID]string{}
	for _, a := range d.Actions {
		if done == limit {
			w.log = append(w.log, who+" is killed")
			return done
		}
		done++
		w.log = append(w.log, who+" "+w.describe(a))
		err := w.apply(a, versions)
		if err == nil {
			continue
		}
		w.log = append(w.log, "  refused: "+err.Error())
		if _, stop := err.(errStop); !stop && failed != nil {
			done += w.run(who, failed(a, err), limit, nil)
		}
		return done
	}
	return done
}

// settle steps both controllers until nothing is left to do, or until limit actions were carried out.
func (w *world) settle(t *testing.T, limit int) (after time.Duration) {
	t.Helper()
	for range 20 {
		before := w.version
		vm := StepVM(w.vmView())
		if w.vm != nil || w.vmi != nil {
			limit -= w.run("vm:", vm, limit, func(a Action, err error) Decision { return VMFailed(w.vmView(), a, err) })
		}
		after = vm.After
		if w.vmi != nil && limit != 0 {
			d := StepVMI(w.vmiView())
			limit -= w.run("vmi:", d, limit, func(a Action, err error) Decision { return VMIFailed(w.vmiView(), a, err) })
			after = sooner(after, d.After)
		}
		if before == w.version || limit == 0 {
			return after
		}
	}
	t.Fatalf("the controllers do not come to rest:\n%s", strings.Join(w.log, "\n"))
	return 0
}
