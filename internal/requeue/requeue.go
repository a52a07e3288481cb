// Package requeue asks a controller to look at objects again for a reason that none of its watches shows. It decides nothing
// itself: who calls it knows what has changed.
package requeue

import (
	"context"
	"log/slog"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Wakeups puts keys into one controller's queue from outside its watches. The zero value is ready; it may be used by several
// goroutines.
type Wakeups struct {
	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

// Source is for the controller's WatchesRawSource.
func (w *Wakeups) Source() source.Source {
	return source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.queue = q
		return nil
	})
}

// Wake does nothing before the controller runs: it looks at every object then.
func (w *Wakeups) Wake(keys ...client.ObjectKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue == nil {
		return
	}
	for _, k := range keys {
		w.queue.Add(reconcile.Request{NamespacedName: k})
	}
}

// One asks for the same request, whatever happened: a controller's that looks at everything each time.
func One(request reconcile.Request) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{request} })
}

// Every asks for all objects of the list's kind, whatever happened. The list itself is not used but for its kind.
func Every(reader client.Reader, kind client.ObjectList, log *slog.Logger) handler.MapFunc {
	return func(ctx context.Context, _ client.Object) (requests []reconcile.Request) {
		list := kind.DeepCopyObject().(client.ObjectList)
		if err := reader.List(ctx, list); err != nil {
			log.Error("list the objects to look at again", "error", err)
			return nil
		}
		_ = meta.EachListItem(list, func(o runtime.Object) error { // which fails for what is no list only
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o.(client.Object))})
			return nil
		})
		return requests
	}
}
