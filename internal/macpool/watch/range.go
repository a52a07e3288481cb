package watch

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"patchbay/internal/macpool"
)

// The ConfigMap in which the pool finds its range.
const (
	RangeConfigMap = "kubemacpool-mac-range-config"
	RangeStart     = "RANGE_START"
	RangeEnd       = "RANGE_END"
	// RefuseDuplicates set to "true" makes admission refuse an address that another machine has.
	RefuseDuplicates = "REFUSE_DUPLICATES"
	// Off set to "true" makes admission leave addresses alone.
	Off = "OFF"

	reasonInvalidRange = "InvalidRange"
)

// addRange watches that one ConfigMap, with a cache of its own: there may be very many others.
func (w *Watch) addRange(m manager.Manager) error {
	one, err := cache.New(m.GetConfig(), cache.Options{
		Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), HTTPClient: m.GetHTTPClient(),
		ByObject: map[client.Object]cache.ByObject{&corev1.ConfigMap{}: {
			Namespaces: map[string]cache.Config{w.Namespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", RangeConfigMap)}},
		}},
	})
	if err != nil {
		return err
	}
	if err := m.Add(one); err != nil {
		return err
	}
	follow := func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		c := &corev1.ConfigMap{}
		if err := one.Get(ctx, req.NamespacedName, c); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err) // a deleted one changes nothing
		}
		w.follow(c)
		return reconcile.Result{}, nil
	}
	return ctrl.NewControllerManagedBy(m).Named("mac-range").
		WatchesRawSource(source.Kind(one, &corev1.ConfigMap{}, &handler.TypedEnqueueRequestForObject[*corev1.ConfigMap]{})).
		Complete(reconcile.Func(follow))
}

// follow takes over a range, or says what is wrong with it and keeps the old one.
func (w *Watch) follow(c *corev1.ConfigMap) {
	w.off.Store(c.Data[Off] == "true")
	w.Pool.SetStrict(c.Data[RefuseDuplicates] == "true")
	r, err := rangeOf(c.Data)
	if err != nil {
		w.events.Eventf(c, nil, corev1.EventTypeWarning, reasonInvalidRange, "SetRange",
			"Invalid MAC range in ConfigMap, ignoring new range values: %v", err)
		return
	}
	if w.Pool.Range() != r {
		w.Log.Info("MAC pool picks from another range", "range", r)
		w.Pool.SetRange(r)
	}
	select {
	case <-w.ranged:
	default:
		close(w.ranged)
	}
}

func rangeOf(data map[string]string) (macpool.Range, error) {
	var ends [2]string
	for i, key := range []string{RangeStart, RangeEnd} {
		text, found := data[key]
		if !found {
			return macpool.Range{}, fmt.Errorf("%s not found in ConfigMap", key)
		}
		if _, err := macpool.Parse(text); err != nil {
			return macpool.Range{}, fmt.Errorf("invalid %s %q: %w", key, text, err)
		}
		ends[i] = text
	}
	return macpool.ParseRange(ends[0], ends[1])
}
