package rollout

import (
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nmstate/kubernetes-nmstate/api/shared"
	publishedv1 "github.com/nmstate/kubernetes-nmstate/api/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	nmstatev1 "patchbay/api/nmstate/v1"
	"patchbay/internal/nmstate"
)

// world is a cluster of three nodes and one policy.
type world struct {
	t *testing.T
	client.Client
	p *policies
}

func newWorld(t *testing.T) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, nmstatev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	objects := []client.Object{&nmstatev1.NodeNetworkConfigurationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "br1", Generation: 1}}}
	for _, name := range []string{"a", "b", "c"} {
		objects = append(objects, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		})
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&nmstatev1.NodeNetworkConfigurationPolicy{}, &nmstatev1.NodeNetworkConfigurationEnactment{}, &publishedv1.NMState{}).Build()
	return &world{t: t, Client: c, p: &policies{client: c, direct: c, log: slog.New(slog.DiscardHandler)}}
}

func (w *world) reconcile() *nmstatev1.NodeNetworkConfigurationPolicy {
	w.t.Helper()
	if _, err := w.p.Reconcile(w.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "br1"}}); err != nil {
		w.t.Fatal(err)
	}
	policy := &nmstatev1.NodeNetworkConfigurationPolicy{}
	if err := w.Get(w.t.Context(), client.ObjectKey{Name: "br1"}, policy); err != nil {
		w.t.Fatal(err)
	}
	return policy
}

// says is the type of the true condition, and its message.
func says(policy *nmstatev1.NodeNetworkConfigurationPolicy) string {
	for _, c := range policy.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			return string(c.Type) + ": " + c.Message
		}
	}
	return ""
}

// enact writes what a node's agent would.
func (w *world) enact(node string, generation int64, phase nmstate.Phase) {
	w.t.Helper()
	e := &nmstatev1.NodeNetworkConfigurationEnactment{}
	key := client.ObjectKey{Name: node + ".br1"}
	if w.Get(w.t.Context(), key, e) != nil {
		e.ObjectMeta = metav1.ObjectMeta{Name: key.Name, Labels: map[string]string{shared.EnactmentPolicyLabel: "br1", shared.EnactmentNodeLabel: node}}
		if err := w.Create(w.t.Context(), e); err != nil {
			w.t.Fatal(err)
		}
	}
	e.Status.PolicyGeneration = generation
	nmstate.SetPhase(&e.Status.Conditions, phase, "", time.Now())
	if err := w.Status().Update(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) turns() map[string]string {
	w.t.Helper()
	var list nmstatev1.NodeNetworkConfigurationEnactmentList
	if err := w.List(w.t.Context(), &list); err != nil {
		w.t.Fatal(err)
	}
	turns := map[string]string{}
	for _, e := range list.Items {
		turns[e.Labels[shared.EnactmentNodeLabel]] = e.Annotations[nmstate.TurnAnnotation]
	}
	return turns
}

// TestARollout follows a policy over three nodes, of which two may change at once, and its second generation.
func TestARollout(t *testing.T) {
	w := newWorld(t)
	first := w.reconcile()
	if says(first) != "" || first.Status.ObservedGeneration != 1 || len(first.Status.Conditions) != 4 {
		t.Fatalf("a new policy says %+v, want everything unknown", first.Status)
	}
	if got := says(w.reconcile()); got != "Progressing: Policy is progressing 0/3 nodes finished" {
		t.Errorf("says %q", got)
	}
	for _, node := range []string{"a", "b", "c"} {
		w.enact(node, 1, nmstate.Waiting)
	}
	if got := w.reconcile(); got.Status.UnavailableNodeCount != 2 || got.Status.UnavailableNodeCountMap["1"] != 2 {
		t.Errorf("unavailable: %+v", got.Status)
	}
	if diff := cmp.Diff(map[string]string{"a": "1:go", "b": "1:go", "c": "1:wait"}, w.turns()); diff != "" {
		t.Errorf("turns (-want +got):\n%s", diff)
	}
	w.enact("a", 1, nmstate.Available)
	w.enact("b", 1, nmstate.Progressing)
	w.enact("c", 1, nmstate.Pending)
	if got := says(w.reconcile()); got != "Progressing: Policy is progressing 1/3 nodes finished, 1 pending" {
		t.Errorf("says %q", got)
	}
	if got := w.turns()["c"]; got != "1:go" {
		t.Errorf("c has the turn %q", got)
	}
	w.enact("b", 1, nmstate.Available)
	w.enact("c", 1, nmstate.Available)
	last := w.reconcile()
	if got := says(last); got != "Available: 3/3 nodes successfully configured" || last.Status.UnavailableNodeCount != 0 {
		t.Errorf("says %q, %d unavailable", got, last.Status.UnavailableNodeCount)
	}
	last.Generation = 2
	if err := w.Update(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	second := w.reconcile()
	if says(second) != "" || second.Status.ObservedGeneration != 2 {
		t.Errorf("a new generation says %q of generation %d, want everything unknown", says(second), second.Status.ObservedGeneration)
	}
	if got := says(w.reconcile()); got != "Progressing: Policy is progressing 0/3 nodes finished" {
		t.Errorf("says %q", got)
	}
}

func TestNMStateIsAnswered(t *testing.T) {
	w := newWorld(t)
	if err := w.Create(t.Context(), &publishedv1.NMState{ObjectMeta: metav1.ObjectMeta{Name: "nmstate"}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := (&installation{w.Client}).Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "nmstate"}}); err != nil {
			t.Fatal(err)
		}
	}
	object := &publishedv1.NMState{}
	if err := w.Get(t.Context(), client.ObjectKey{Name: "nmstate"}, object); err != nil {
		t.Fatal(err)
	}
	if c := object.Status.Conditions.Find("Available"); c == nil || c.Status != corev1.ConditionTrue || c.Reason != "SuccessfullyDeployed" {
		t.Errorf("conditions %+v", object.Status.Conditions)
	}
}
