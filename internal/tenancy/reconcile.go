package tenancy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	ovnv1 "patchbay/api/ovn/v1"
)

// settling is how soon a network is asked again whether it is still carried; a burst of writes takes about that long.
const settling = 200 * time.Millisecond

// lookAgain is the net under what watches bring sooner: a namespace or a pod that stood in the way has changed.
const lookAgain = 30 * time.Second

func (t *Tenancy) reconcileNamespaced(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	u := &ovnv1.UserDefinedNetwork{}
	if err := t.client.Get(ctx, req.NamespacedName, u); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	return t.reconcile(ctx, wishOfNamespace(u))
}

func (t *Tenancy) reconcileClusterly(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	c := &ovnv1.ClusterUserDefinedNetwork{}
	if err := t.client.Get(ctx, req.NamespacedName, c); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	return t.reconcile(ctx, wishOfCluster(c))
}

func (t *Tenancy) reconcile(ctx context.Context, w wish) (reconcile.Result, error) {
	t.turn.Lock()
	defer t.turn.Unlock()
	if w.leaving() && !controllerutil.ContainsFinalizer(w.object, ovnv1.Finalizer) {
		return reconcile.Result{}, nil // somebody else's finalizer holds it
	}
	if !w.leaving() {
		if err := t.finalizer(ctx, w, controllerutil.AddFinalizer); err != nil {
			return reconcile.Result{}, stale(err)
		}
	}
	if w.err == nil {
		w.err = w.network.CheckCluster(t.Settings)
	}
	results, err := t.visit(ctx, w)
	if err != nil {
		return reconcile.Result{}, err
	}
	ended := w.leaving() && gone(results)
	if ended && t.Running(w.name) {
		w.held = fmt.Errorf("cannot remove UDN, controller for network %s is still running", w.name)
	} else if ended {
		t.failed.set(w.name, nil)
		return reconcile.Result{}, stale(t.finalizer(ctx, w, controllerutil.RemoveFinalizer))
	}
	if err := t.report(ctx, w, results); err != nil {
		return reconcile.Result{}, stale(err)
	}
	if w.held != nil {
		return reconcile.Result{RequeueAfter: settling}, nil
	}
	return after(results)
}

// gone tells whether nothing of a network is left.
func gone(results []result) bool {
	return !slices.ContainsFunc(results, func(r result) bool { return r.state != absent || r.err != nil })
}

// after says when to look again: at once for what the API server refused, later for what waits for others.
func after(results []result) (reconcile.Result, error) {
	var waiting bool
	for _, r := range results {
		var refused refusal
		if errors.As(r.err, &refused) && !apierrors.IsConflict(refused.error) {
			return reconcile.Result{}, r.err
		}
		waiting = waiting || r.err != nil
	}
	if waiting {
		return reconcile.Result{RequeueAfter: lookAgain}, nil
	}
	return reconcile.Result{}, nil
}

// refusal is an error of the API server, as opposed to a state that the user has to change.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// stale drops the errors of decisions on objects that have changed since: their event comes.
func stale(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (t *Tenancy) finalizer(ctx context.Context, w wish, change func(client.Object, string) bool) error {
	before := w.object.DeepCopyObject().(client.Object)
	if !change(w.object, ovnv1.Finalizer) {
		return nil
	}
	if err := t.client.Patch(ctx, w.object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write the finalizer of %s %s: %w", w.kind, client.ObjectKeyFromObject(w.object), err)
	}
	return nil
}

// visit steps the network in every namespace that it is meant for, or still is in.
func (t *Tenancy) visit(ctx context.Context, w wish) ([]result, error) {
	namespaces, err := t.namespaces(ctx, w)
	if err != nil {
		return nil, err
	}
	var results []result
	for _, ns := range namespaces {
		o, err := t.visitOne(ctx, w, ns)
		if err != nil {
			return nil, err
		}
		results = append(results, result{namespace: ns.Name, outcome: o})
	}
	return results, nil
}

// namespaces are those that the network is meant for, and those with a definition of it, by name.
func (t *Tenancy) namespaces(ctx context.Context, w wish) ([]*corev1.Namespace, error) {
	var own nadv1.NetworkAttachmentDefinitionList
	if err := t.client.List(ctx, &own, client.MatchingFields{definitionsByOwner: string(w.object.GetUID())}); err != nil {
		return nil, fmt.Errorf("list the definitions of %s: %w", w.network.Name, err)
	}
	inside := map[string]bool{}
	for _, d := range own.Items {
		inside[d.Namespace] = true
	}
	var all corev1.NamespaceList
	if err := t.client.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var chosen []*corev1.Namespace
	for i := range all.Items {
		ns := &all.Items[i]
		if inside[ns.Name] || w.err == nil && w.wantedIn(ns) || w.kind == namespaced && ns.Name == w.object.GetNamespace() {
			chosen = append(chosen, ns)
		}
	}
	slices.SortFunc(chosen, func(a, b *corev1.Namespace) int { return compare(a.Name, b.Name) })
	return chosen, nil
}

// visitOne decides on the cache, and once more on the API server itself when the decision makes or ends something.
func (t *Tenancy) visitOne(ctx context.Context, w wish, ns *corev1.Namespace) (outcome, error) {
	p, err := t.look(ctx, t.client, w, ns)
	if err != nil {
		return outcome{}, err
	}
	o := step(w, p)
	if o.final() {
		if p, err = t.look(ctx, t.live, w, ns); err != nil {
			return outcome{}, err
		}
		o = step(w, p)
	}
	for _, change := range o.writes {
		if err := t.write(ctx, change); err != nil {
			o.err = refusal{err}
			break
		}
	}
	return o, nil
}

func (t *Tenancy) look(ctx context.Context, reader client.Reader, w wish, ns *corev1.Namespace) (place, error) {
	p := place{namespace: ns}
	var list nadv1.NetworkAttachmentDefinitionList
	if err := reader.List(ctx, &list, client.InNamespace(ns.Name)); err != nil {
		return p, fmt.Errorf("list the definitions of namespace %s: %w", ns.Name, err)
	}
	p.definitions = list.Items
	d, ours := p.own(w)
	if !ours || w.wantedIn(ns) && d.DeletionTimestamp == nil {
		return p, nil
	}
	var err error
	p.users, err = t.users(ctx, reader, client.ObjectKeyFromObject(d))
	return p, err
}

// users are the pods on a definition: those of any namespace that the cache knows, and those of its own that the reader knows.
func (t *Tenancy) users(ctx context.Context, reader client.Reader, definition client.ObjectKey) ([]string, error) {
	var known, here corev1.PodList
	if err := t.client.List(ctx, &known, client.MatchingFields{podsByAttachment: definition.String()}); err != nil {
		return nil, fmt.Errorf("list the pods on %s: %w", definition, err)
	}
	if reader != t.client {
		if err := reader.List(ctx, &here, client.InNamespace(definition.Namespace)); err != nil {
			return nil, fmt.Errorf("list the pods of namespace %s: %w", definition.Namespace, err)
		}
		known.Items = slices.DeleteFunc(known.Items, func(p corev1.Pod) bool { return p.Namespace == definition.Namespace })
	}
	var names []string
	for _, pod := range slices.Concat(known.Items, here.Items) {
		if slices.Contains(attachments(&pod), definition.String()) {
			names = append(names, pod.Namespace+"/"+pod.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (t *Tenancy) write(ctx context.Context, change write) error {
	switch {
	case change.from == nil:
		if err := t.client.Create(ctx, change.to); err != nil {
			return err
		}
		slog.InfoContext(ctx, "network attachment definition made", "definition", client.ObjectKeyFromObject(change.to))
	case change.to == nil:
		uid := change.from.UID
		err := t.client.Delete(ctx, change.from, client.Preconditions(metav1.Preconditions{UID: &uid}))
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		slog.InfoContext(ctx, "network attachment definition deleted", "definition", client.ObjectKeyFromObject(change.from))
	default:
		patch := client.MergeFromWithOptions(change.from, client.MergeFromWithOptimisticLock{})
		return client.IgnoreNotFound(t.client.Patch(ctx, change.to.DeepCopy(), patch))
	}
	return nil
}
