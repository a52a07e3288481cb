package admission

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// istioInject is the annotation that asks for a mesh sidecar.
const istioInject = "sidecar.istio.io/inject"

// sidecarPorts are what a mesh sidecar listens on in the pod (chapter9 9.7.1-C3).
var sidecarPorts = []int32{15000, 15001, 15006, 15008, 15020, 15021, 15090}

// droppedPorts are never let in to a guest behind masquerade (chapter9 9.2.1-C6).
var droppedPorts = []int32{49152, 49153}

// WarnVM lists what works now and will hurt later.
func WarnVM(vm *virtv1.VirtualMachine) []string {
	var warnings []string
	if vm.Spec.Running != nil {
		warnings = append(warnings, "spec.running is deprecated, please use spec.runStrategy instead.")
	}
	t := vm.Spec.Template
	if t == nil {
		return warnings
	}
	for _, iface := range t.Spec.Domain.Devices.Interfaces {
		for _, p := range iface.Ports {
			if iface.Masquerade != nil && slices.Contains(droppedPorts, p.Port) {
				warnings = append(warnings, fmt.Sprintf("interface %s: port %d is reserved and never reaches the guest; choose another port", iface.Name, p.Port))
			}
		}
	}
	if InMesh(t.ObjectMeta.Annotations) {
		warnings = append(warnings, warnMeshPorts(t.Spec.Domain.Devices.Interfaces)...)
	}
	return warnings
}

// InMesh reports whether the annotations of a template or VMI ask for a mesh sidecar.
func InMesh(annotations map[string]string) bool {
	return strings.EqualFold(annotations[istioInject], "true")
}

func warnMeshPorts(interfaces []virtv1.Interface) []string {
	var warnings []string
	for _, iface := range interfaces {
		for _, p := range iface.Ports {
			if slices.Contains(sidecarPorts, p.Port) {
				warnings = append(warnings, fmt.Sprintf(
					"interface %s: port %d belongs to the mesh sidecar and never reaches the guest; choose another port", iface.Name, p.Port))
			}
		}
	}
	return warnings
}

// WarnService lists what users of VMs should know about a Service. inMesh says that a VM it selects has a mesh sidecar.
func WarnService(s *corev1.Service, inMesh bool) []string {
	var warnings []string
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		warnings = append(warnings, "externalTrafficPolicy: Local causes downtime when a VM behind this Service live-migrates: "+
			"clients outside the cluster lose the VM until the load balancer has noticed its new node; use Cluster to avoid it")
	}
	for _, p := range s.Spec.Ports {
		if target := targetPort(p); inMesh && slices.Contains(sidecarPorts, target) {
			warnings = append(warnings, fmt.Sprintf(
				"target port %d belongs to the mesh sidecar of the VMs behind this Service and never reaches them; choose another port", target))
		}
	}
	return warnings
}

func targetPort(p corev1.ServicePort) int32 {
	if p.TargetPort.IntVal != 0 {
		return p.TargetPort.IntVal
	}
	return p.Port
}
