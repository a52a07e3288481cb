// Package machinepod recognizes the pods that run virtual machines, by the label and the owner that they are made with. It must not
// make any.
package machinepod

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// App is the value of the label virtv1.AppLabel on them.
const App = "virt-launcher"

// Is says that a pod was made to run a machine.
func Is(pod client.Object) bool { return pod.GetLabels()[virtv1.AppLabel] == App }

// Machine is the virtual machine that a pod runs: the instance that controls it.
type Machine struct {
	Name string
	UID  types.UID
}

// Of says whose pod a pod is; ok is false when it is no machine's.
func Of(pod *corev1.Pod) (m Machine, ok bool) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != virtv1.VirtualMachineInstanceGroupVersionKind.Kind || !Is(pod) {
		return Machine{}, false
	}
	return Machine{Name: owner.Name, UID: owner.UID}, true
}
