package machinepod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

func TestOf(t *testing.T) {
	pod := func(app, kind string, controls bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{virtv1.AppLabel: app}}}
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "web", UID: "u1", Controller: &controls}}
		return p
	}
	for name, c := range map[string]struct {
		pod      *corev1.Pod
		is, owns bool
	}{
		"a machine's":                     {pod("virt-launcher", "VirtualMachineInstance", true), true, true},
		"labelled by a user":              {pod("virt-launcher", "ReplicaSet", true), true, false},
		"of a machine that does not rule": {pod("virt-launcher", "VirtualMachineInstance", false), true, false},
		"a machine's helper":              {pod("other", "VirtualMachineInstance", true), false, false},
		"a pod":                           {&corev1.Pod{}, false, false},
	} {
		m, ok := Of(c.pod)
		if Is(c.pod) != c.is || ok != c.owns || ok && m != (Machine{"web", "u1"}) {
			t.Errorf("%s: %v, and of %+v, %v", name, Is(c.pod), m, ok)
		}
	}
}
