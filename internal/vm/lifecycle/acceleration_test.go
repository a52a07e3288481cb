package lifecycle

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu"
	"patchbay/internal/vm/launcherpod"
)

// agentNode is a node whose agent says what executes guest code; "silent" is one without an agent.
func agentNode(name, accelerator string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	if accelerator != "silent" {
		n.Labels[virtv1.NodeSchedulable], n.Labels[qemu.AcceleratorLabel] = "true", accelerator
	}
	if accelerator == "kvm" {
		n.Status.Allocatable = corev1.ResourceList{qemu.KVMResource: resource.MustParse("1000")}
	}
	return n
}

func TestAccelerate(t *testing.T) {
	const inconsistent, emulated, wait, accelerated = "", "KVMNotAvailable", "wait", "KVM"
	with := func(n *corev1.Node, change func(*corev1.Node)) *corev1.Node { change(n); return n }
	label := func(key, value string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Labels[key] = value }
	}
	noDevices := func(n *corev1.Node) { n.Status.Allocatable = nil }
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	tainted := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	}
	discouraged := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "busy", Effect: corev1.TaintEffectPreferNoSchedule}}
	}
	on := func(node string) func(*VMIView) {
		return func(v *VMIView) { v.VMI.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} }
	}
	volumeOn := func(node string) func(*VMIView) {
		return func(v *VMIView) {
			pv := &corev1.PersistentVolume{}
			pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}}
			v.Volumes = []*corev1.PersistentVolume{{}, pv}
		}
	}
	kvm, tcg, silent := func() *corev1.Node { return agentNode("hard", "kvm") }, func() *corev1.Node { return agentNode("soft", "tcg") }, func() *corev1.Node { return agentNode("mute", "silent") }

	for name, c := range map[string]struct {
		nodes  []*corev1.Node
		change func(*VMIView)
		want   string
	}{
		"all have it":                          {[]*corev1.Node{kvm(), kvm()}, nil, accelerated},
		"one has it":                           {[]*corev1.Node{tcg(), kvm()}, nil, accelerated},
		"none has it":                          {[]*corev1.Node{tcg(), tcg()}, nil, emulated},
		"no nodes":                             {nil, nil, wait},
		"no agents":                            {[]*corev1.Node{silent(), silent()}, nil, wait},
		"one agent of two":                     {[]*corev1.Node{silent(), tcg()}, nil, emulated},
		"no agents, but emulation is wanted":   {[]*corev1.Node{silent()}, func(v *VMIView) { v.Settings.UseEmulation = true }, "UseEmulation"},
		"emulation is wanted":                  {[]*corev1.Node{kvm()}, func(v *VMIView) { v.Settings.UseEmulation = true }, "UseEmulation"},
		"the kubelet has just been started":    {[]*corev1.Node{with(kvm(), noDevices)}, nil, accelerated},
		"devices without the label":            {[]*corev1.Node{with(kvm(), label(qemu.AcceleratorLabel, ""))}, nil, accelerated},
		"devices of a node without agent":      {[]*corev1.Node{with(kvm(), label(virtv1.NodeSchedulable, "false")), tcg()}, nil, emulated},
		"pinned to a node that has it":         {[]*corev1.Node{kvm(), tcg()}, on("hard"), accelerated},
		"pinned to a node that has not":        {[]*corev1.Node{kvm(), tcg()}, on("soft"), emulated},
		"pinned to a node that does not exist": {[]*corev1.Node{kvm(), tcg()}, on("moon"), accelerated},
		"affinity to a node that has not": {[]*corev1.Node{kvm(), tcg()}, func(v *VMIView) {
			v.VMI.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: []string{"hard"}},
				}}},
			}}}
		}, emulated},
		"its volume is on a node that has not": {[]*corev1.Node{kvm(), tcg()}, volumeOn("soft"), emulated},
		"its volume is on a node that has it":  {[]*corev1.Node{kvm(), tcg()}, volumeOn("hard"), accelerated},
		"the node that has it is cordoned":     {[]*corev1.Node{with(kvm(), cordoned), tcg()}, nil, emulated},
		"every node is cordoned":               {[]*corev1.Node{with(kvm(), cordoned), with(tcg(), cordoned)}, nil, accelerated},
		"the node that has it is tainted":      {[]*corev1.Node{with(kvm(), tainted), tcg()}, nil, emulated},
		"the taint is tolerated": {[]*corev1.Node{with(kvm(), tainted), tcg()}, func(v *VMIView) {
			v.VMI.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		}, accelerated},
		"the taint is a wish": {[]*corev1.Node{with(kvm(), discouraged), tcg()}, nil, accelerated},
		"the machine demands it": {[]*corev1.Node{tcg()}, func(v *VMIView) {
			v.Settings.UseEmulation = true
			v.VMI.Spec.Domain.Resources.Limits = corev1.ResourceList{qemu.KVMResource: resource.MustParse("1")}
		}, accelerated},
	} {
		t.Run(name, func(t *testing.T) {
			view := VMIView{Now: epoch, Settings: SettingsFrom("launcher", virtv1.KubeVirtConfiguration{}), Nodes: c.nodes}
			view.VMI = &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "uid"}}
			view.VMI.Spec.Domain.Memory = &virtv1.Memory{Guest: new(resource.MustParse("64Mi"))}
			if c.change != nil {
				c.change(&view)
			}
			s := &vmiStep{view: view, vmi: view.VMI.DeepCopy()}
			s.emulated("OfAnEarlierAttempt", "")
			pod, err := s.accelerate(launcherpod.Request{Cluster: view.Settings.Launcher, VMI: s.vmi})
			if err != nil {
				t.Fatal(err)
			}
			got := inconsistent
			condition := vmiCondition(s.vmi, virtv1.VirtualMachineInstanceSoftwareEmulation)
			switch {
			case pod == nil:
				got = wait
			case qemu.AcceleratorOf(pod) == qemu.KVM && condition == nil && len(s.events) == 0:
				got = accelerated
			case qemu.AcceleratorOf(pod) == qemu.TCG && condition != nil && len(s.events) == 1:
				got = condition.Reason
			}
			if got != c.want {
				t.Errorf("%q, want %q (condition %v, events %v)", got, c.want, condition, s.events)
			}
		})
	}
}

func TestUseEmulationSetting(t *testing.T) {
	for _, want := range []bool{false, true} {
		c := virtv1.KubeVirtConfiguration{DeveloperConfiguration: &virtv1.DeveloperConfiguration{UseEmulation: want}}
		if got := SettingsFrom("launcher", c).UseEmulation; got != want {
			t.Errorf("useEmulation %v becomes %v", want, got)
		}
	}
}
