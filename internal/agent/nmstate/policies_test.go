package nmstate

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nmstate/kubernetes-nmstate/api/shared"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	nmstatev1 "patchbay/api/nmstate/v1"
	"patchbay/internal/nmstate"
)

// events collects what people are told.
type events []string

func (e *events) Event(_ runtime.Object, kind, reason, message string) {
	*e = append(*e, kind+" "+reason+": "+message)
}

// agent is the part of an agent that carries out one policy on the lab's node.
type agent struct {
	t *testing.T
	client.Client
	p      *Policies
	events events
}

func newAgent(t *testing.T, document string, probes ...Probe) *agent {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, nmstatev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	policy := &nmstatev1.NodeNetworkConfigurationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "test", Generation: 1}}
	policy.Spec.NodeSelector = map[string]string{"role": "lab"}
	policy.Spec.DesiredState = shared.NewState(document)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"role": "lab"}}}
	a := &agent{t: t}
	a.Client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(policy, node).WithStatusSubresource(&nmstatev1.NodeNetworkConfigurationEnactment{}).Build()
	a.restart(enactor(t, probes...))
	return a
}

// restart begins with an agent that knows nothing.
func (a *agent) restart(e *Enactor) {
	a.p = NewPolicies(Config{
		Node: "node-1", Client: a.Client, Live: a.Client, Enactor: e, Events: &a.events, Allowed: func() error { return nil }, Log: slog.New(slog.DiscardHandler),
	})
}

func (a *agent) reconcile() reconcile.Result {
	a.t.Helper()
	result, err := a.p.Reconcile(a.t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "test"}})
	if err != nil {
		a.t.Fatal(err)
	}
	return result
}

func (a *agent) enactment() *nmstatev1.NodeNetworkConfigurationEnactment {
	a.t.Helper()
	e := &nmstatev1.NodeNetworkConfigurationEnactment{}
	if err := a.Get(a.t.Context(), client.ObjectKey{Name: "node-1.test"}, e); err != nil {
		a.t.Fatal(err)
	}
	return e
}

func (a *agent) phase() nmstate.Phase { return nmstate.PhaseOf(a.enactment().Status.Conditions) }

func (a *agent) give(turn nmstate.Turn) {
	a.t.Helper()
	e := a.enactment()
	e.Annotations = map[string]string{nmstate.TurnAnnotation: nmstate.FormatTurn(e.Status.PolicyGeneration, turn)}
	if err := a.Update(a.t.Context(), e); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) message(kind string) string {
	if c := a.enactment().Status.Conditions.Find(shared.ConditionType(kind)); c != nil {
		return c.Message
	}
	return ""
}

const bridge = "interfaces: [{name: brp, type: linux-bridge, state: up, bridge: {port: [{name: eth1}]}}]"

// TestAnEnactmentsLife follows one from the policy to its end.
func TestAnEnactmentsLife(t *testing.T) {
	cards(t, "eth1")
	t.Cleanup(func() { _ = run("ip", "link", "del", "brp") })
	a := newAgent(t, bridge)
	a.reconcile()
	e := a.enactment()
	if a.phase() != nmstate.Waiting || e.Labels[shared.EnactmentPolicyLabel] != "test" || len(e.OwnerReferences) != 1 || exists("brp") {
		t.Fatalf("before its turn: %+v", e)
	}
	a.give(nmstate.Wait)
	a.reconcile()
	if a.phase() != nmstate.Pending || a.message("Pending") != "Waiting for progressing nodes to finish" {
		t.Errorf("waits as %s %q", a.phase(), a.message("Pending"))
	}
	a.give(nmstate.Go)
	a.reconcile()
	e = a.enactment()
	if a.phase() != nmstate.Available || a.message("Available") != "successfully reconciled" || !exists("brp") {
		t.Fatalf("after its turn: %+v", e.Status)
	}
	if document := e.Status.DesiredState.String(); !strings.Contains(document, "max: 4094") {
		t.Errorf("the document lacks the default tags: %s", document)
	}
	// A node that is restarted has lost the bridge.
	must(t, "ip", "link", "del", "brp")
	a.reconcile()
	if exists("brp") {
		t.Error("what somebody removed by hand came back without a restart")
	}
	a.restart(enactor(t))
	a.reconcile()
	if !exists("brp") {
		t.Error("a new agent did not make the bridge again")
	}
	// A node that is not selected any more keeps its network and loses its enactment.
	node := &corev1.Node{}
	if err := a.Get(t.Context(), client.ObjectKey{Name: "node-1"}, node); err != nil {
		t.Fatal(err)
	}
	node.Labels = nil
	if err := a.Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	a.reconcile()
	if err := a.Get(t.Context(), client.ObjectKey{Name: "node-1.test"}, e); !apierrors.IsNotFound(err) || !exists("brp") {
		t.Errorf("the enactment: %v; the bridge exists: %v", err, exists("brp"))
	}
}

func TestFiveTriesAndNoMore(t *testing.T) {
	cards(t, "eth1")
	asked := 0
	a := newAgent(t, bridge, failing(&asked))
	a.reconcile()
	a.give(nmstate.Go)
	for try := 1; try <= nmstate.MaxRetries; try++ {
		a.p.notBefore["test"] = time.Time{} // as if the pause were over
		result := a.reconcile()
		if try == nmstate.MaxRetries {
			break
		}
		if a.phase() != nmstate.Retrying || result.RequeueAfter == 0 {
			t.Fatalf("after try %d: %s, again after %v", try, a.phase(), result.RequeueAfter)
		}
		if want := fmt.Sprintf("failed to reconcile NodeNetworkConfigurationPolicy on node node-1. Retrying %d/5", try); !strings.HasPrefix(a.message("Failing"), want) {
			t.Errorf("says %q", a.message("Failing"))
		}
		if result := a.reconcile(); result.RequeueAfter == 0 {
			t.Error("the pause is not kept")
		}
		if try == 2 {
			a.restart(a.p.Enactor) // the count survives
		}
	}
	if a.phase() != nmstate.Failing || !strings.Contains(a.message("Failing"), "error reconciling NodeNetworkConfigurationPolicy on node node-1 at desired state apply: rolling back") {
		t.Errorf("in the end %s: %q", a.phase(), a.message("Failing"))
	}
	if len(a.events) != 1 || a.events[0] != `Warning ReconcileFailed: reconciliation of enactment "node-1.test" has failed after 5 retries` {
		t.Errorf("events %q", a.events)
	}
	before := asked
	a.reconcile()
	if asked != before || exists("brp") {
		t.Error("it was tried again, or left something")
	}
}

func TestADocumentThatNoNodeTakesIsTriedOnce(t *testing.T) {
	a := newAgent(t, "interfaces: [{name: brp, type: linux-bridge, mut: 5}]")
	a.reconcile()
	a.give(nmstate.Go)
	a.reconcile()
	if a.phase() != nmstate.Failing || !strings.Contains(a.message("Failing"), `failure generating desiredState and capturedStates: InvalidArgument: unknown field`) {
		t.Errorf("%s: %q", a.phase(), a.message("Failing"))
	}
}

func TestAnAbortedEnactmentIsNotTried(t *testing.T) {
	cards(t, "eth1")
	a := newAgent(t, bridge)
	a.reconcile()
	a.give(nmstate.Abort)
	a.reconcile()
	if a.phase() != nmstate.Aborted || exists("brp") || len(a.events) != 1 {
		t.Errorf("%s, events %q", a.phase(), a.events)
	}
}

func TestAHostsOwnNetworkIsRefused(t *testing.T) {
	cards(t, "eth1")
	a := newAgent(t, bridge)
	a.p.Allowed = func() error { return ErrRootNamespace }
	a.reconcile()
	a.give(nmstate.Go)
	a.reconcile()
	if a.phase() != nmstate.Failing || !strings.Contains(a.message("Failing"), "set manageHostNetwork") || exists("brp") {
		t.Errorf("%s: %q", a.phase(), a.message("Failing"))
	}
}
