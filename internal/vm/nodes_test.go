package vm

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/qemu"
)

// label writes a label of a node, also when the test is over; "" removes it.
func (s *site) label(node, key, value string) {
	s.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	text := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	if value == "" {
		text = fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, key)
	}
	if err := s.client.Patch(context.Background(), n, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
		s.t.Fatal(err)
	}
}

// A machine that is created before any agent lives starts when one does, with what that agent's node offers.
func TestWaitsForAnAgent(t *testing.T) {
	s := newSite(t, nil)
	s.label("node-1", virtv1.NodeSchedulable, "")
	t.Cleanup(func() { s.label("node-1", virtv1.NodeSchedulable, "true") })
	s.controllers()
	s.create(s.machine("web", virtv1.RunStrategyAlways))
	s.eventually(func() string { return s.says("web", virtv1.VirtualMachineInstanceSynchronized, "NoNodeAgent") })
	if n := len(s.pods()); n != 0 {
		t.Errorf("%d pods before there is a node for them", n)
	}
	s.label("node-1", virtv1.NodeSchedulable, "true")
	s.shows("web", virtv1.VirtualMachineStatusRunning)
	for _, pod := range s.pods() {
		if qemu.AcceleratorOf(&pod) != qemu.KVM {
			t.Errorf("the pod's resources are %v, on a node that offers KVM", pod.Spec.Containers[0].Resources)
		}
	}

	s.label("node-1", qemu.AcceleratorLabel, string(qemu.TCG))
	t.Cleanup(func() { s.label("node-1", qemu.AcceleratorLabel, string(qemu.KVM)) })
	s.create(s.machine("slow", virtv1.RunStrategyAlways))
	s.shows("slow", virtv1.VirtualMachineStatusRunning)
	s.eventually(func() string {
		return s.says("slow", virtv1.VirtualMachineInstanceSoftwareEmulation, "KVMNotAvailable")
	})
}

// says returns "" when an instance's condition has a reason.
func (s *site) says(name string, kind virtv1.VirtualMachineInstanceConditionType, reason string) string {
	s.t.Helper()
	vmi := s.instance(name)
	if vmi == nil {
		return "there is no instance"
	}
	for _, c := range vmi.Status.Conditions {
		if c.Type == kind && c.Reason == reason {
			return ""
		}
	}
	return fmt.Sprintf("no condition %s %s in %v", kind, reason, vmi.Status.Conditions)
}

func TestNodeIsTakenOutOfService(t *testing.T) {
	s := newSite(t, nil)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: "dead", Labels: map[string]string{virtv1.NodeSchedulable: "true"},
		Annotations: map[string]string{virtv1.VirtHandlerHeartbeat: time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)},
	}}
	s.create(node)
	t.Cleanup(func() { _ = s.client.Delete(context.Background(), node) })
	s.controllers()
	s.eventually(func() string {
		got := &corev1.Node{}
		if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(node), got); err != nil {
			return err.Error()
		}
		if got.Labels[virtv1.NodeSchedulable] != "false" {
			return fmt.Sprintf("labels %v", got.Labels)
		}
		return ""
	})
}
