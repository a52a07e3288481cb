package vm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/vm/lifecycle"
)

// executor carries out decisions.
type executor struct {
	client client.Client
	events events.EventRecorder
}

// errStale says that a decision was made on objects that have changed since; it is to be made again.
var errStale = errors.New("the object has changed")

// decide runs a decision. When an action is refused, failed says what to tell the user.
func (e executor) decide(ctx context.Context, d lifecycle.Decision, failed func(lifecycle.Action, error) lifecycle.Decision) (ctrl.Result, error) {
	action, err := e.run(ctx, d)
	switch {
	case err == nil:
		return ctrl.Result{RequeueAfter: d.After}, nil
	case errors.Is(err, errStale):
		return ctrl.Result{RequeueAfter: staleRetry}, nil
	case ctx.Err() != nil:
		return ctrl.Result{}, ctx.Err()
	}
	if _, second := e.run(ctx, failed(action, err)); second != nil && !errors.Is(second, errStale) {
		err = errors.Join(err, second)
	}
	return ctrl.Result{}, err
}

// run carries out actions up to the first that fails. Patches of one object build on each other.
func (e executor) run(ctx context.Context, d lifecycle.Decision) (lifecycle.Action, error) {
	versions := map[types.UID]string{}
	for _, action := range d.Actions {
		if err := e.do(ctx, action, versions); err != nil {
			return action, err
		}
	}
	return nil, nil
}

// longestNote is how long in bytes the API server lets an event's text be, less what it may cut a character by.
const longestNote = 1020

func (e executor) do(ctx context.Context, action lifecycle.Action, versions map[types.UID]string) error {
	switch a := action.(type) {
	case lifecycle.Create:
		return e.create(ctx, a)
	case lifecycle.Patch:
		return e.patch(ctx, a, versions)
	case lifecycle.Delete:
		return e.delete(ctx, a)
	case lifecycle.Event:
		e.events.Eventf(a.Object, nil, a.Type, a.Reason, a.Reason, "%s", a.Message[:min(len(a.Message), longestNote)])
	}
	return nil
}

func (e executor) create(ctx context.Context, a lifecycle.Create) error {
	err := e.client.Create(ctx, a.Object)
	if apierrors.IsAlreadyExists(err) {
		if a.Keep {
			return nil
		}
		return errStale
	}
	if err == nil && !a.Keep {
		slog.InfoContext(ctx, "created", "object", title(a.Object))
	}
	return err
}

// patch sends what differs. A pod is also written by its kubelet, all the time: its lists are merged by their keys, and it need
// not be unchanged. Every other object must be as it was.
func (e executor) patch(ctx context.Context, a lifecycle.Patch, versions map[types.UID]string) error {
	from := a.From.DeepCopyObject().(client.Object)
	to := a.To.DeepCopyObject().(client.Object)
	var patch client.Patch
	if _, ok := a.From.(*corev1.Pod); ok {
		patch = client.StrategicMergeFrom(from)
	} else {
		if v, ok := versions[from.GetUID()]; ok {
			from.SetResourceVersion(v)
		}
		to.SetResourceVersion(from.GetResourceVersion())
		patch = client.MergeFromWithOptions(from, client.MergeFromWithOptimisticLock{})
	}
	var err error
	if a.Status {
		err = e.client.Status().Patch(ctx, to, patch)
	} else {
		err = e.client.Patch(ctx, to, patch)
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return errStale
	}
	if err == nil {
		versions[from.GetUID()] = to.GetResourceVersion()
	}
	return err
}

// delete deletes the very object that was meant, not one of its name that came after it.
func (e executor) delete(ctx context.Context, a lifecycle.Delete) error {
	options := &client.DeleteOptions{GracePeriodSeconds: a.GraceSeconds}
	if uid := a.Object.GetUID(); uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	err := e.client.Delete(ctx, a.Object, options)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err == nil {
		slog.InfoContext(ctx, "deleted", "object", title(a.Object))
	}
	return err
}

func title(o lifecycle.Object) string {
	return fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())
}
