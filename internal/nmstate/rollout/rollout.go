// Package rollout is the cluster's side of node network policies: it gives nodes their turns, so that no more of them than
// allowed change or have failed at once, and sums the enactments up in the policies' status. It must not know how a network is
// changed: agents do that.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nmstate/kubernetes-nmstate/api/shared"
	publishedv1 "github.com/nmstate/kubernetes-nmstate/api/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	nmstatev1 "patchbay/api/nmstate/v1"
	"patchbay/internal/nmstate"
	"patchbay/internal/requeue"
)

// policies follows the policies' enactments.
type policies struct {
	client client.Client
	direct client.Client // not the cache: a turn that was given must count in the next decision
	log    *slog.Logger
}

// SetupWithManager runs the controllers in a manager. direct reads and writes the API server itself.
func SetupWithManager(m manager.Manager, direct client.Client, log *slog.Logger) error {
	p := &policies{client: m.GetClient(), direct: direct, log: log}
	ofEnactment := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: o.GetLabels()[shared.EnactmentPolicyLabel]}}}
	})
	err := ctrl.NewControllerManagedBy(m).Named("node-network-rollout").
		For(&nmstatev1.NodeNetworkConfigurationPolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&nmstatev1.NodeNetworkConfigurationEnactment{}, ofEnactment).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(requeue.Every(p.client, &nmstatev1.NodeNetworkConfigurationPolicyList{}, p.log)), builder.WithPredicates(nodeMatters)).
		Complete(p)
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).Named("nmstate").For(&publishedv1.NMState{}).Complete(&installation{direct})
}

// nodeMatters leaves out kubelet's reports that all is as it was.
var nodeMatters = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, isNode := e.ObjectOld.(*corev1.Node)
	after, alsoNode := e.ObjectNew.(*corev1.Node)
	return !isNode || !alsoNode || ready(before) != ready(after) || !maps.Equal(before.Labels, after.Labels)
}}

// Reconcile gives turns and writes the status of one policy.
func (p *policies) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	policy := &nmstatev1.NodeNetworkConfigurationPolicy{}
	if err := p.direct.Get(ctx, request.NamespacedName, policy); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if policy.Status.ObservedGeneration != policy.Generation {
		// Nothing is known of it yet. kubectl wait must not take what the last generation came to for its outcome.
		return reconcile.Result{RequeueAfter: time.Millisecond}, p.write(ctx, policy, func(s *nmstatev1.PolicyStatus) {
			s.ObservedGeneration, s.UnavailableNodeCountMap = policy.Generation, nil
			nmstate.ResetPolicy(&s.Conditions, time.Now())
		})
	}
	nodes, enactments, err := p.facts(ctx, policy)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := p.giveTurns(ctx, policy, nodes, enactments); err != nil {
		return reconcile.Result{}, err
	}
	summary := nmstate.Summarize(nodes)
	return reconcile.Result{}, p.write(ctx, policy, func(s *nmstatev1.PolicyStatus) {
		if s.UnavailableNodeCount != summary.Unavailable || s.UnavailableNodeCountMap == nil {
			s.UnavailableNodeCount, s.LastUnavailableNodeCountUpdate = summary.Unavailable, new(metav1.Now())
			s.UnavailableNodeCountMap = map[string]int{strconv.FormatInt(policy.Generation, 10): summary.Unavailable}
		}
		summary.Set(&s.Conditions, time.Now())
	})
}

func (p *policies) write(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, change func(*nmstatev1.PolicyStatus)) error {
	before := policy.DeepCopy()
	change(&policy.Status)
	if equality.Semantic.DeepEqual(before.Status, policy.Status) {
		return nil
	}
	err := p.direct.Status().Patch(ctx, policy, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return client.IgnoreNotFound(err)
}

// facts reads the nodes that the policy selects and their enactments.
func (p *policies) facts(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy) ([]nmstate.NodeFacts, map[string]*nmstatev1.NodeNetworkConfigurationEnactment, error) {
	var nodes corev1.NodeList
	if err := p.client.List(ctx, &nodes, client.MatchingLabels(policy.Spec.NodeSelector)); err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	var list nmstatev1.NodeNetworkConfigurationEnactmentList
	if err := p.direct.List(ctx, &list, client.MatchingLabels{shared.EnactmentPolicyLabel: policy.Name}); err != nil {
		return nil, nil, fmt.Errorf("list enactments of policy %s: %w", policy.Name, err)
	}
	enactments := map[string]*nmstatev1.NodeNetworkConfigurationEnactment{}
	for n := range list.Items {
		enactments[list.Items[n].Labels[shared.EnactmentNodeLabel]] = &list.Items[n]
	}
	var facts []nmstate.NodeFacts
	for n := range nodes.Items {
		node := &nodes.Items[n]
		fact := nmstate.NodeFacts{Name: node.Name, Ready: ready(node), Phase: nmstate.Waiting}
		if e := enactments[node.Name]; e != nil && e.Status.PolicyGeneration == policy.Generation {
			fact.Known, fact.Phase = true, nmstate.PhaseOf(e.Status.Conditions)
			fact.Turn = nmstate.ParseTurn(e.Annotations[nmstate.TurnAnnotation], policy.Generation)
		}
		facts = append(facts, fact)
	}
	return facts, enactments, nil
}

func ready(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// giveTurns tells nodes what they may do, and notes it in the facts.
func (p *policies) giveTurns(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, nodes []nmstate.NodeFacts, enactments map[string]*nmstatev1.NodeNetworkConfigurationEnactment) error {
	count := 0
	for _, n := range nodes {
		if n.Ready {
			count++
		}
	}
	turns := nmstate.Turns(nodes, nmstate.MaxUnavailable(policy.Spec.MaxUnavailable, count))
	for n := range nodes {
		turn, ok := turns[nodes[n].Name]
		if !ok {
			continue
		}
		e := enactments[nodes[n].Name]
		before := e.DeepCopy()
		if e.Annotations == nil {
			e.Annotations = map[string]string{}
		}
		e.Annotations[nmstate.TurnAnnotation] = nmstate.FormatTurn(policy.Generation, turn)
		if err := p.direct.Patch(ctx, e, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("give node %s its turn for policy %s: %w", nodes[n].Name, policy.Name, err)
		}
		nodes[n].Turn = turn
	}
	return nil
}

// installation answers the NMState object, with which other clusters install what is always here.
type installation struct{ client client.Client }

// Reconcile says that all is deployed.
func (i *installation) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	object := &publishedv1.NMState{}
	if err := i.client.Get(ctx, request.NamespacedName, object); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	before := object.DeepCopy()
	const reason = shared.ConditionReason("SuccessfullyDeployed")
	for kind, status := range map[shared.ConditionType]corev1.ConditionStatus{
		"Available": corev1.ConditionTrue, "Progressing": corev1.ConditionFalse, "Degraded": corev1.ConditionFalse,
	} {
		if c := object.Status.Conditions.Find(kind); c == nil || c.Status != status {
			object.Status.Conditions.Set(kind, status, reason, "")
		}
	}
	slices.SortFunc(object.Status.Conditions, func(a, b shared.Condition) int {
		switch {
		case a.Type < b.Type:
			return -1
		case a.Type > b.Type:
			return 1
		}
		return 0
	})
	if equality.Semantic.DeepEqual(before.Status, object.Status) {
		return reconcile.Result{}, nil
	}
	err := i.client.Status().Patch(ctx, object, client.MergeFrom(before))
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, errors.Join(fmt.Errorf("write the status of NMState %s", object.Name), err)
	}
	return reconcile.Result{}, nil
}
