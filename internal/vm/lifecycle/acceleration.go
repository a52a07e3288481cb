package lifecycle

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu"
	"patchbay/internal/vm/launcherpod"
)

// accelerate settles what executes the guest, for as long as the pod lives. A pod that asks for /dev/kvm is scheduled only to
// nodes that have it; so it asks when one of the nodes that it may run on does, and is emulated otherwise. It returns nil while
// no node's agent has said anything: the pod could run nowhere, and would miss the device of the node that speaks next.
func (s *vmiStep) accelerate(r launcherpod.Request) (*corev1.Pod, error) {
	pod, err := launcherpod.Build(r)
	if err != nil {
		return nil, err
	}
	switch {
	case qemu.AcceleratorOf(pod) == qemu.KVM: // the machine's own specification demands it
		s.emulated("", "")
	case s.view.Settings.UseEmulation:
		s.emulated(reasonUseEmulation, textUseEmulation)
		s.tell(string(virtv1.VirtualMachineInstanceSoftwareEmulation), textUseEmulation)
	case !slices.ContainsFunc(s.view.Nodes, hasAgent):
		s.fault(reasonNoAgent, textNoAgent)
		return nil, nil
	case offersKVM(s.candidates(pod)):
		s.emulated("", "")
		r.KVM = true
		return launcherpod.Build(r)
	default:
		s.emulated(reasonNoKVM, textNoKVM)
		s.events = append(s.events, Event{
			Object: s.view.VMI, Type: corev1.EventTypeWarning, Reason: string(virtv1.VirtualMachineInstanceSoftwareEmulation), Message: textNoKVM,
		})
	}
	return pod, nil
}

// emulated says in a condition why the guest is emulated; without a reason, that it is not.
func (s *vmiStep) emulated(reason, message string) {
	if reason == "" {
		removeVMICondition(s.vmi, virtv1.VirtualMachineInstanceSoftwareEmulation)
		return
	}
	setVMICondition(s.vmi, metav1.NewTime(s.view.Now), virtv1.VirtualMachineInstanceCondition{
		Type: virtv1.VirtualMachineInstanceSoftwareEmulation, Status: corev1.ConditionTrue, Reason: reason, Message: message,
	})
}

// candidates are the nodes that the scheduler may choose for a pod, when there is room. If there are none now, any node may become one.
func (s *vmiStep) candidates(pod *corev1.Pod) []*corev1.Node {
	var list []*corev1.Node
	for _, node := range s.view.Nodes {
		if admits(node, pod) && s.reachesVolumes(node) {
			list = append(list, node)
		}
	}
	if len(list) == 0 {
		return s.view.Nodes
	}
	return list
}

// admits says whether a node is one of those that a pod selects, and lets it in.
func admits(node *corev1.Node, pod *corev1.Pod) bool {
	if selected, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); err != nil || !selected {
		return false
	}
	taints := node.Spec.Taints
	if node.Spec.Unschedulable { // the taint of this name follows a moment later
		taints = append(slices.Clone(taints), corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	_, refused := scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, taints, pod.Spec.Tolerations, keepsOut, true)
	return !refused
}

func keepsOut(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}

// reachesVolumes says whether the volumes that the machine already has can be used on a node.
func (s *vmiStep) reachesVolumes(node *corev1.Node) bool {
	for _, v := range s.view.Volumes {
		if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
			continue
		}
		if reached, err := nodeaffinity.NewLazyErrorNodeSelector(v.Spec.NodeAffinity.Required).Match(node); err != nil || !reached {
			return false
		}
	}
	return true
}

// hasAgent says whether an agent has ever lived on a node.
func hasAgent(node *corev1.Node) bool { return node.Labels[virtv1.NodeSchedulable] != "" }

// offersKVM says whether pods may ask one of the nodes for /dev/kvm. The label stands for the moments in which a kubelet has
// forgotten its devices because it, or the agent, has just been started.
func offersKVM(nodes []*corev1.Node) bool {
	return slices.ContainsFunc(nodes, func(n *corev1.Node) bool {
		count := n.Status.Allocatable[qemu.KVMResource]
		return !count.IsZero() || n.Labels[qemu.AcceleratorLabel] == string(qemu.KVM)
	})
}
