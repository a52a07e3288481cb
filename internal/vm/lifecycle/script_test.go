package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/golden"
	"patchbay/internal/podnetworks"
	"patchbay/internal/vm/launcherpod"
)

func TestStories(t *testing.T) {
	golden.Stories(t, func(t *testing.T) golden.Happen {
		w := newWorld()
		return func(words []string) ([]string, error) {
			w.log = nil
			err := w.event(t, words)
			return w.log, err
		}
	})
}

// event makes something happen and lets the controllers answer. The word "killed=N" ends them after N actions; "quietly" leaves
// them asleep.
func (w *world) event(t *testing.T, words []string) error {
	limit, quiet := -1, false
	var args []string
	for _, word := range words {
		switch {
		case strings.HasPrefix(word, "killed="):
			n, err := strconv.Atoi(strings.TrimPrefix(word, "killed="))
			if err != nil {
				return err
			}
			limit = n
		case word == "quietly":
			quiet = true
		default:
			args = append(args, word)
		}
	}
	if err := w.happen(args); err != nil {
		return err
	}
	if quiet {
		return nil
	}
	if after := w.settle(t, limit); after != 0 {
		w.log = append(w.log, "looks again after "+after.Round(time.Millisecond).String())
	}
	return nil
}

func (w *world) happen(args []string) error {
	verb, args := args[0], args[1:]
	switch verb {
	case "create":
		return w.createVM(strings.Join(args, " "))
	case "edit":
		return w.edit(strings.Join(args, " "))
	case "bare":
		return w.bareInstance()
	case "request":
		return w.request(args)
	case "delete":
		return w.deleteNamed(args)
	case "pod":
		return w.kubelet(args)
	case "agent":
		return w.agent(args)
	case "claim":
		return w.claim(args)
	case "node":
		return w.node(args)
	case "offers": // node-1 offers this, node-2 that, …
		w.offers = nil
		for n, accelerator := range args {
			w.offers = append(w.offers, agentNode(fmt.Sprintf("node-%d", n+1), accelerator))
		}
	case "useEmulation":
		w.settings.UseEmulation = args[0] == "true"
	case "network":
		w.networks[args[0]] = ""
	case "quota":
		w.quota = nil
		if args[0] == "exceeded" {
			w.quota = errors.New("exceeded quota: compute")
		}
	case "jitter":
		var err error
		w.jitter, err = strconv.ParseFloat(args[0], 64)
		return err
	case "grace":
		seconds, err := strconv.ParseInt(args[0], 10, 64)
		w.vmi.Spec.TerminationGracePeriodSeconds = &seconds
		w.touch(w.vmi)
		return err
	case "wait":
		d, err := time.ParseDuration(args[0])
		w.now = w.now.Add(d)
		return err
	case "gc": // the garbage collector orphans what a deleted machine owned
		w.vm.Finalizers, w.vmi.OwnerReferences = withoutFinalizer(w.vm.Finalizers, metav1.FinalizerOrphanDependents), nil
		w.collect()
	case "wake":
	case "show":
		w.show()
	default:
		return fmt.Errorf("unknown event %q", verb)
	}
	return nil
}

const baseVM = `{"metadata":{"name":"web","namespace":"shop"},"spec":{"template":{"metadata":{"labels":{"app":"web"}},
"spec":{"domain":{"firmware":{"uuid":"5d307ca9-b3ef-428c-8861-06e72d69f223"},"memory":{"guest":"128Mi"},"devices":{"interfaces":[{"name":"default","masquerade":{}}]}},
"networks":[{"name":"default","pod":{}}]}}}}`

// createVM makes the machine "web"; the argument is merged into its specification.
func (w *world) createVM(spec string) error {
	text, err := jsonpatch.MergePatch([]byte(baseVM), []byte(`{"spec":`+spec+`}`))
	if err != nil {
		return err
	}
	vm := &virtv1.VirtualMachine{}
	if err := json.Unmarshal(text, vm); err != nil {
		return err
	}
	w.born(vm, "vm")
	w.vm = vm
	return nil
}

// bareInstance makes an instance without a machine.
func (w *world) bareInstance() error {
	vm := &virtv1.VirtualMachine{}
	if err := json.Unmarshal([]byte(baseVM), vm); err != nil {
		return err
	}
	w.vmi = &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: vm.Spec.Template.Spec}
	w.born(w.vmi, "vmi")
	return nil
}

func (w *world) edit(spec string) error {
	text, err := json.Marshal(w.vm)
	if err != nil {
		return err
	}
	if text, err = jsonpatch.MergePatch(text, []byte(`{"spec":`+spec+`}`)); err != nil {
		return err
	}
	vm := &virtv1.VirtualMachine{}
	if err := json.Unmarshal(text, vm); err != nil {
		return err
	}
	vm.Generation++
	w.vm = vm
	w.touch(vm)
	return nil
}

// request does what the subresources start, stop and restart do to a machine's status.
func (w *world) request(args []string) error {
	var list []stateChange
	if args[0] != "start" {
		stop := stateChange{Action: virtv1.StopRequest}
		if w.vmi != nil {
			stop.UID = &w.vmi.UID
		}
		list = append(list, stop)
	}
	if args[0] != "stop" {
		start := stateChange{Action: virtv1.StartRequest}
		if len(args) > 1 {
			start.Data = map[string]string{args[1]: "true"}
		}
		list = append(list, start)
	}
	w.vm.Status.StateChangeRequests = list
	w.touch(w.vm)
	return nil
}

func (w *world) deleteNamed(args []string) error {
	switch args[0] {
	case "vm":
		if len(args) > 1 {
			w.vm.Finalizers = append(w.vm.Finalizers, args[1])
		}
		w.delete(w.vm, nil)
	case "vmi":
		w.delete(w.vmi, nil)
	case "pod":
		w.delete(w.pods[0], nil)
	}
	return nil
}

// kubelet changes the newest pod.
func (w *world) kubelet(args []string) error {
	pod := w.pods[len(w.pods)-1]
	value := func(i int) string { return strings.Join(args[i:], " ") }
	running := corev1.ContainerStatus{Name: "compute", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	switch args[0] {
	case "unschedulable":
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: value(1)}}
	case "bound":
		pod.Spec.NodeName = args[1]
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	case "waiting":
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "compute", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: args[1], Message: value(2)},
		}}}
	case "running":
		pod.Status.Phase = corev1.PodRunning
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{running}
	case "ready", "unready":
		status := map[string]corev1.ConditionStatus{"ready": corev1.ConditionTrue, "unready": corev1.ConditionFalse}[args[0]]
		setPodCondition(pod, corev1.PodCondition{Type: corev1.PodReady, Status: status})
	case "attached": // to its own network and so many more, by their names in the instance
		list := []attached{{Name: "ovn-kubernetes", Interface: "eth0", Default: true}}
		for _, name := range args[1:] {
			list = append(list, attached{Name: "shop/" + name, Interface: podnetworks.InterfaceName(name)})
		}
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[nadv1.NetworkStatusAnnot] = string(text)
	case "succeeded", "failed":
		w.endPod(pod, args)
	case "gone":
		w.pods = w.pods[:len(w.pods)-1]
		return nil
	}
	w.touch(pod)
	return nil
}

func (w *world) endPod(pod *corev1.Pod, args []string) {
	end := corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(w.now)}
	pod.Status.Phase = corev1.PodSucceeded
	if args[0] == "failed" {
		pod.Status.Phase = corev1.PodFailed
		end.ExitCode, end.Reason = 137, "Error"
		if len(args) > 1 {
			pod.Status.Reason, pod.Status.Message = args[1], strings.Join(args[2:], " ")
		}
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "compute", State: corev1.ContainerState{Terminated: &end}}}
}

func setPodCondition(pod *corev1.Pod, c corev1.PodCondition) {
	if old := podCondition(pod, c.Type); old != nil {
		*old = c
		return
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}

// agent does what the agent of the node reports.
func (w *world) agent(args []string) error {
	now := metav1.NewTime(w.now)
	switch args[0] {
	case "paused":
		setVMICondition(w.vmi, now, virtv1.VirtualMachineInstanceCondition{Type: virtv1.VirtualMachineInstancePaused, Status: corev1.ConditionTrue, Reason: "PausedByUser"})
	case "unpaused":
		removeVMICondition(w.vmi, virtv1.VirtualMachineInstancePaused)
	case "plugged":
		for i := range w.vmi.Status.Interfaces {
			if w.vmi.Status.Interfaces[i].Name == args[1] {
				w.vmi.Status.Interfaces[i].InfoSource = "domain, multus-status"
				w.touch(w.vmi)
				return nil
			}
		}
		w.vmi.Status.Interfaces = append(w.vmi.Status.Interfaces, virtv1.VirtualMachineInstanceNetworkInterface{Name: args[1], InfoSource: "domain"})
	case "unplugged":
		for i := range w.vmi.Status.Interfaces {
			if w.vmi.Status.Interfaces[i].Name == args[1] {
				setSource(&w.vmi.Status.Interfaces[i], fromDomain, false)
			}
		}
	case "migratable":
		setVMICondition(w.vmi, now, virtv1.VirtualMachineInstanceCondition{Type: virtv1.VirtualMachineInstanceIsMigratable, Status: corev1.ConditionTrue})
	case "migrating":
		w.vmi.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{TargetPod: w.addTarget().Name}
	case "migrated":
		w.vmi.Status.MigrationState.Completed = true
		w.vmi.Status.NodeName, w.vmi.Labels[virtv1.NodeNameLabel] = args[1], args[1]
	default:
		phase := virtv1.VirtualMachineInstancePhase(strings.ToUpper(args[0][:1]) + args[0][1:])
		w.vmi.Status.Phase = phase
	}
	w.touch(w.vmi)
	return nil
}

// addTarget makes the pod that a migration moves the guest to, running on node-2.
func (w *world) addTarget() *corev1.Pod {
	pod, err := launcherpod.Build(launcherpod.Request{
		Cluster: w.settings.Launcher, VMI: w.vmi, Migration: &launcherpod.Migration{Name: "job", UID: "job-uid"},
	})
	if err != nil {
		panic(err)
	}
	w.born(pod, "pod")
	pod.CreationTimestamp = metav1.NewTime(w.now.Add(time.Second))
	pod.Spec.NodeName, pod.Status.Phase = "node-2", corev1.PodRunning
	w.pods = append([]*corev1.Pod{pod}, w.pods...) // events about "the pod" stay with the source
	return pod
}

func (w *world) claim(args []string) error {
	if args[1] == "missing" {
		delete(w.claims, args[0])
		return nil
	}
	w.claims[args[0]] = &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: args[0], Namespace: "shop"},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.PersistentVolumeClaimPhase(args[1])},
	}
	return nil
}

func (w *world) node(args []string) error {
	status := map[string]corev1.ConditionStatus{"ready": corev1.ConditionTrue, "lost": corev1.ConditionUnknown}[args[1]]
	w.nodes[args[0]] = &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}}}
	return nil
}

// show writes what a user would list.
func (w *world) show() {
	if w.vm != nil {
		w.log = append(w.log, fmt.Sprintf("vm %s: %s ready=%v", w.vm.Name, w.vm.Status.PrintableStatus, w.vm.Status.Ready))
	}
	if w.vmi != nil {
		w.log = append(w.log, fmt.Sprintf("vmi %s: %s %s", w.vmi.UID, w.vmi.Status.Phase, w.vmi.Status.Reason))
	}
	for _, p := range w.pods {
		w.log = append(w.log, fmt.Sprintf("pod %s: %s", p.Name, p.Status.Phase))
	}
	for name := range w.started {
		w.log = append(w.log, "revision "+name)
	}
}
