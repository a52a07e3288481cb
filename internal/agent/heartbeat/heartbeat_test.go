package heartbeat

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/qemu"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func node(schedulable, accelerator, heartbeat string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{}, Annotations: map[string]string{}}}
	for key, value := range map[string]string{virtv1.NodeSchedulable: schedulable, qemu.AcceleratorLabel: accelerator} {
		if value != "" {
			n.Labels[key] = value
		}
	}
	if heartbeat != "" {
		n.Annotations[virtv1.VirtHandlerHeartbeat] = heartbeat
	}
	return n
}

func TestDue(t *testing.T) {
	for name, c := range map[string]struct {
		node *corev1.Node
		want time.Duration
	}{
		"a new node":                         {node("", "", ""), 0},
		"just written":                       {node("true", "kvm", "2026-01-01T12:00:00Z"), time.Minute},
		"forty seconds ago":                  {node("true", "kvm", "2026-01-01T11:59:20Z"), 20 * time.Second},
		"an hour ago":                        {node("true", "kvm", "2026-01-01T11:00:00Z"), 0},
		"by a clock that was put back":       {node("true", "kvm", "2026-01-01T15:00:00Z"), 0},
		"not readable":                       {node("true", "kvm", "noon"), 0},
		"without heartbeat":                  {node("true", "kvm", ""), 0},
		"the label is gone":                  {node("", "kvm", "2026-01-01T12:00:00Z"), 0},
		"the accelerator changed":            {node("true", "tcg", "2026-01-01T12:00:00Z"), 0},
		"somebody says it is out of service": {node("false", "kvm", "2026-01-01T11:59:30Z"), 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if got := due(c.node, qemu.KVM, now); got != c.want {
				t.Errorf("due in %v, want %v", got, c.want)
			}
		})
	}
}

func TestReconcile(t *testing.T) {
	before := node("false", "tcg", "2026-01-01T11:00:00Z")
	before.Labels["disk"], before.Annotations["note"] = "ssd", "mine"
	c := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(before).Build()
	h := New(Config{Node: "node-1", Client: c, Accelerator: func() qemu.Accelerator { return qemu.KVM }})
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: "node-1"}}

	begin := time.Now().Truncate(time.Second)
	result, err := h.Reconcile(t.Context(), request)
	if err != nil || result.RequeueAfter != Period {
		t.Fatalf("first beat: %+v, %v", result, err)
	}
	got := &corev1.Node{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(before), got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"disk": "ssd", virtv1.NodeSchedulable: "true", qemu.AcceleratorLabel: "kvm"}
	if diff := cmp.Diff(want, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	written, err := time.Parse(time.RFC3339, got.Annotations[virtv1.VirtHandlerHeartbeat])
	if err != nil || written.Before(begin) || got.Annotations["note"] != "mine" {
		t.Errorf("annotations %v", got.Annotations)
	}

	if result, err = h.Reconcile(t.Context(), request); err != nil || result.RequeueAfter <= 0 || result.RequeueAfter > Period {
		t.Errorf("second beat: %+v, %v", result, err)
	}
	again := &corev1.Node{}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(before), again); err != nil {
		t.Fatal(err)
	}
	if again.ResourceVersion != got.ResourceVersion {
		t.Error("a heartbeat was written before it was due")
	}

	if err := c.Delete(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if result, err = h.Reconcile(t.Context(), request); err != nil || result.RequeueAfter != 0 {
		t.Errorf("without a node: %+v, %v", result, err)
	}
}
