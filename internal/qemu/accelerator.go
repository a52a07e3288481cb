package qemu

import corev1 "k8s.io/api/core/v1"

// How nodes and pods speak of KVM. The controller asks for the device in a machine's pod or does not; whoever starts QEMU follows
// what it finds in the pod and decides nothing itself, so the two cannot disagree.
const (
	// KVMResource is what a pod requests to be given /dev/kvm.
	KVMResource corev1.ResourceName = "devices.kubevirt.io/kvm"
	// AcceleratorLabel is a node's label that says what executes guest code there: "kvm" or "tcg". Unlike the node's count of
	// KVMResource it does not drop to zero while the kubelet or the agent starts again.
	AcceleratorLabel = "patchbay.io/accelerator"
)

// AcceleratorOf is what executes the guest that runs in a pod.
func AcceleratorOf(pod *corev1.Pod) Accelerator {
	for _, c := range pod.Spec.Containers {
		if count := c.Resources.Limits[KVMResource]; !count.IsZero() {
			return KVM
		}
	}
	return TCG
}
