package nmstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"time"

	"github.com/nmstate/kubernetes-nmstate/api/shared"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	nmstatev1 "patchbay/api/nmstate/v1"
	"patchbay/internal/nmstate"
	"patchbay/internal/requeue"
)

// Recorder tells people about an object.
type Recorder interface {
	Event(object runtime.Object, kind, reason, message string)
}

// Config is what Policies need.
type Config struct {
	Node    string
	Client  client.Client
	Live    client.Reader // not the cache: the agent's own enactments must not be late
	Enactor *Enactor
	Events  Recorder
	// Changed is told after every attempt to change the network; it may be nil.
	Changed func()
	// Allowed says why this agent must not change the network, if so.
	Allowed func() error
	Log     *slog.Logger
}

// Policies carries out the policies that select the node, one after the other.
type Policies struct {
	Config
	seen      map[string]bool      // enactments that this process has compared with the node
	notBefore map[string]time.Time // when a failed one is tried again
}

// NewPolicies makes the reconciler.
func NewPolicies(c Config) *Policies {
	return &Policies{Config: c, seen: map[string]bool{}, notBefore: map[string]time.Time{}}
}

// CacheOptions keep a manager's cache to the node's own enactments.
func CacheOptions(node string) map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&nmstatev1.NodeNetworkConfigurationEnactment{}: {Label: labels.SelectorFromSet(labels.Set{shared.EnactmentNodeLabel: node})},
	}
}

// AddToManager has the manager run the reconciler.
func (p *Policies) AddToManager(m manager.Manager) error {
	ofEnactment := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: o.GetLabels()[shared.EnactmentPolicyLabel]}}}
	})
	return ctrl.NewControllerManagedBy(m).Named("node-network-policies").
		For(&nmstatev1.NodeNetworkConfigurationPolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&nmstatev1.NodeNetworkConfigurationEnactment{}, ofEnactment).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(requeue.Every(p.Client, &nmstatev1.NodeNetworkConfigurationPolicyList{}, p.Log)), builder.WithPredicates(predicate.LabelChangedPredicate{}, only(p.Node))).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1, SkipNameValidation: new(true)}).
		Complete(p)
}

func only(name string) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectNew.GetName() == name },
	}
}

// Reconcile brings the node's enactment of one policy forward by one step.
func (p *Policies) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var node corev1.Node
	if err := p.Client.Get(ctx, client.ObjectKey{Name: p.Node}, &node); err != nil {
		return reconcile.Result{}, err
	}
	var policy nmstatev1.NodeNetworkConfigurationPolicy
	err := p.Client.Get(ctx, request.NamespacedName, &policy)
	gone := apierrors.IsNotFound(err) || (err == nil && !selects(policy.Spec.NodeSelector, node.Labels))
	switch {
	case gone:
		// The network stays: what a policy did is undone by another policy.
		delete(p.notBefore, request.Name)
		delete(p.seen, request.Name)
		return reconcile.Result{}, p.withdraw(ctx, request.Name)
	case err != nil:
		return reconcile.Result{}, err
	}
	e, err := p.enactment(ctx, &policy, &node)
	if err != nil {
		return reconcile.Result{}, err
	}
	return p.step(ctx, &policy, e)
}

func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

func (p *Policies) withdraw(ctx context.Context, policy string) error {
	e := &nmstatev1.NodeNetworkConfigurationEnactment{ObjectMeta: metav1.ObjectMeta{Name: shared.EnactmentKey(p.Node, policy).Name}}
	return client.IgnoreNotFound(p.Client.Delete(ctx, e))
}

// enactment reads the node's enactment of a policy, or makes it, and begins anew for a new generation.
func (p *Policies) enactment(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, node *corev1.Node) (*nmstatev1.NodeNetworkConfigurationEnactment, error) {
	e := &nmstatev1.NodeNetworkConfigurationEnactment{}
	key := client.ObjectKey(shared.EnactmentKey(p.Node, policy.Name))
	err := p.Live.Get(ctx, key, e)
	if apierrors.IsNotFound(err) {
		e.ObjectMeta = metav1.ObjectMeta{
			Name:            key.Name,
			Labels:          map[string]string{shared.EnactmentPolicyLabel: policy.Name, shared.EnactmentNodeLabel: p.Node},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		}
		err = p.Client.Create(ctx, e)
	}
	if err != nil {
		return nil, fmt.Errorf("enactment %s: %w", key.Name, err)
	}
	if e.Status.PolicyGeneration == policy.Generation {
		return e, nil
	}
	delete(p.notBefore, policy.Name)
	p.seen[policy.Name] = true
	return e, p.write(ctx, e, func(s *nmstatev1.EnactmentStatus) {
		*s = nmstatev1.EnactmentStatus{NodeNetworkConfigurationEnactmentStatus: shared.NodeNetworkConfigurationEnactmentStatus{
			PolicyGeneration: policy.Generation, Conditions: s.Conditions,
		}}
		nmstate.SetPhase(&s.Conditions, nmstate.Waiting, "", time.Now())
	})
}

// write changes the status of an enactment; this agent is its only writer.
func (p *Policies) write(ctx context.Context, e *nmstatev1.NodeNetworkConfigurationEnactment, change func(*nmstatev1.EnactmentStatus)) error {
	before := e.DeepCopy()
	change(&e.Status)
	if err := p.Client.Status().Patch(ctx, e, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("write the status of enactment %s: %w", e.Name, err)
	}
	return nil
}

func (p *Policies) setPhase(ctx context.Context, e *nmstatev1.NodeNetworkConfigurationEnactment, phase nmstate.Phase, message string) error {
	if nmstate.PhaseOf(e.Status.Conditions) == phase {
		return nil
	}
	return p.write(ctx, e, func(s *nmstatev1.EnactmentStatus) { nmstate.SetPhase(&s.Conditions, phase, message, time.Now()) })
}

func (p *Policies) step(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, e *nmstatev1.NodeNetworkConfigurationEnactment) (reconcile.Result, error) {
	switch nmstate.PhaseOf(e.Status.Conditions) {
	case nmstate.Available:
		return reconcile.Result{}, p.restore(ctx, policy, e)
	case nmstate.Failing, nmstate.Aborted:
		return reconcile.Result{}, nil // until the policy is edited
	}
	switch nmstate.ParseTurn(e.Annotations[nmstate.TurnAnnotation], policy.Generation) {
	case nmstate.Go:
	case nmstate.Wait:
		return reconcile.Result{}, p.setPhase(ctx, e, nmstate.Pending, nmstate.MessagePending)
	case nmstate.Abort:
		message := nmstate.AbortedMessage(e.Name)
		p.Events.Event(policy, corev1.EventTypeWarning, nmstate.ReasonReconcileFailed, message)
		return reconcile.Result{}, p.setPhase(ctx, e, nmstate.Aborted, message)
	default:
		return reconcile.Result{}, nil // the controller will say
	}
	if left := time.Until(p.notBefore[policy.Name]); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	return p.try(ctx, policy, e)
}

// restore makes the network again that a policy made before this process started: a node that was restarted has lost it. Later
// changes by hand or by other policies are left alone.
func (p *Policies) restore(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, e *nmstatev1.NodeNetworkConfigurationEnactment) error {
	if p.seen[policy.Name] || p.Allowed() != nil {
		return nil
	}
	p.seen[policy.Name] = true
	desired, err := nmstate.Parse(e.Status.DesiredState.Raw)
	if err != nil {
		return nil // what was accepted once and is not now, is left as it is
	}
	if done, err := p.Enactor.Satisfied(desired); done && err == nil {
		return nil
	}
	p.Log.Info("the network of an earlier start is made again", "policy", policy.Name)
	err = p.Enactor.Enact(ctx, policy.Name, policy.Generation, desired)
	p.changed()
	if err == nil {
		return nil
	}
	return p.setPhase(ctx, e, nmstate.Failing, nmstate.FailedMessage(p.Node, err))
}

func (p *Policies) changed() {
	if p.Changed != nil {
		p.Changed()
	}
}

// try applies a policy once. The try is counted before, so that one that kills the agent counts, too.
func (p *Policies) try(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, e *nmstatev1.NodeNetworkConfigurationEnactment) (reconcile.Result, error) {
	generation := strconv.FormatInt(policy.Generation, 10)
	tries := e.Status.RetryCount[generation] + 1
	if tries > nmstate.MaxRetries {
		return p.failed(ctx, policy, e, tries-1, errors.New("the agent ended during every try; see its log"), true)
	}
	desired, render, err := p.render(policy, e)
	writeErr := p.write(ctx, e, func(s *nmstatev1.EnactmentStatus) {
		s.RetryCount = map[string]int{generation: tries}
		render(s)
		nmstate.SetPhase(&s.Conditions, nmstate.Progressing, nmstate.MessageApplying, time.Now())
	})
	if writeErr != nil {
		return reconcile.Result{}, writeErr
	}
	if err != nil {
		return p.failed(ctx, policy, e, tries, err, errors.Is(err, nmstate.ErrDocument))
	}
	if err := p.Allowed(); err != nil {
		return p.failed(ctx, policy, e, tries, err, true)
	}
	if desired.Empty() {
		p.Log.Info("Ignoring empty desired state", "policy", policy.Name)
	} else {
		err = p.Enactor.Enact(ctx, policy.Name, policy.Generation, desired)
		p.changed()
	}
	if ctx.Err() != nil {
		return reconcile.Result{}, ctx.Err() // the agent ends; the next one goes on
	}
	if err != nil {
		return p.failed(ctx, policy, e, tries, errors.New(nmstate.FailedMessage(p.Node, err)), errors.Is(err, nmstate.ErrDocument))
	}
	p.Log.Info("node network policy applied", "policy", policy.Name, "generation", policy.Generation)
	return reconcile.Result{}, p.setPhase(ctx, e, nmstate.Available, nmstate.MessageSuccess)
}

// render gives the document for this node and what the enactment says of it. Captures of an earlier try are kept: a try that
// changed something and was taken back must not see something else the next time.
func (p *Policies) render(policy *nmstatev1.NodeNetworkConfigurationPolicy, e *nmstatev1.NodeNetworkConfigurationEnactment) (desired nmstate.State, note func(*nmstatev1.EnactmentStatus), err error) {
	note = func(*nmstatev1.EnactmentStatus) {}
	now, err := p.Enactor.Node.Observe()
	if err != nil {
		return desired, note, err
	}
	cached := map[string][]byte{}
	for name, state := range e.Status.CapturedStates {
		cached[name] = state.State.Raw
	}
	rendered, states, err := nmstate.Render(policy.Spec.Capture, cached, policy.Spec.DesiredState.Raw, now)
	if err == nil {
		desired, err = nmstate.Parse(rendered)
	}
	if err != nil {
		return desired, note, fmt.Errorf("%w", noDocument{err})
	}
	desired = desired.WithDefaults()
	document, err := desired.YAML()
	if err != nil {
		return desired, note, noDocument{err}
	}
	meta := shared.NodeNetworkConfigurationEnactmentMetaInfo{Version: strconv.FormatInt(policy.Generation, 10), TimeStamp: metav1.Now()}
	captured := map[string]shared.NodeNetworkConfigurationEnactmentCapturedState{}
	for name, state := range states {
		captured[name] = shared.NodeNetworkConfigurationEnactmentCapturedState{State: shared.State{Raw: state}, MetaInfo: meta}
	}
	maps.Copy(captured, e.Status.CapturedStates)
	return desired, func(s *nmstatev1.EnactmentStatus) {
		s.DesiredState, s.DesiredStateMetaInfo = shared.State{Raw: document}, meta
		if len(captured) > 0 {
			s.CapturedStates = captured
		}
	}, nil
}

// noDocument says in the field's words that there is nothing to apply.
type noDocument struct{ error }

func (e noDocument) Error() string { return nmstate.NoDocumentMessage(e.error) }
func (e noDocument) Unwrap() error { return e.error }

// failed plans the next try, or gives up: after the last one, or when no try can succeed.
func (p *Policies) failed(ctx context.Context, policy *nmstatev1.NodeNetworkConfigurationPolicy, e *nmstatev1.NodeNetworkConfigurationEnactment, tries int, err error, final bool) (reconcile.Result, error) {
	p.Log.Warn("node network policy failed", "policy", policy.Name, "generation", policy.Generation, "try", tries, "error", err)
	if final || tries >= nmstate.MaxRetries {
		p.Events.Event(policy, corev1.EventTypeWarning, nmstate.ReasonReconcileFailed, nmstate.GivenUpMessage(e.Name, tries))
		return reconcile.Result{}, p.setPhase(ctx, e, nmstate.Failing, err.Error())
	}
	pause := nmstate.Backoff(tries + 1)
	p.notBefore[policy.Name] = time.Now().Add(pause)
	return reconcile.Result{RequeueAfter: pause}, p.setPhase(ctx, e, nmstate.Retrying, nmstate.RetryingMessage(p.Node, tries, err))
}
