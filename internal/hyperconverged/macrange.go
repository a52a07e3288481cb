package hyperconverged

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/home"
	"patchbay/internal/macpool"
	"patchbay/internal/macpool/watch"
)

// StrictMACsAnnotation set to "true" refuses machines with an address that another machine has, as published pools did before
// 2026. Otherwise they are accepted, and reported while both run.
const StrictMACsAnnotation = "patchbay.io/refuse-duplicate-macs"

// macRange is the wanted content of the pool's ConfigMap, given the present one (nil when there is none). A cluster whose
// administrator chose no range keeps the one that it has.
func macRange(h *hcov1beta1.HyperConverged, present map[string]string, random func() uint16) (map[string]string, error) {
	wanted := map[string]string{}
	maps.Copy(wanted, present)
	delete(wanted, watch.RefuseDuplicates)
	delete(wanted, watch.Off)
	if withoutMACPool(h) {
		wanted[watch.Off] = "true"
	}
	if h.Annotations[StrictMACsAnnotation] == "true" {
		wanted[watch.RefuseDuplicates] = "true"
	}
	_, networking := h.Spec.Settings()
	if c := networking.KubeMacPoolConfiguration; c != nil && (c.RangeStart != nil || c.RangeEnd != nil) {
		start, end := *or(c.RangeStart, ""), *or(c.RangeEnd, "")
		if _, err := macpool.ParseRange(start, end); err != nil {
			return wanted, err
		}
		wanted[watch.RangeStart], wanted[watch.RangeEnd] = start, end
	}
	if present == nil && wanted[watch.RangeStart] == "" {
		r := macpool.DefaultRange(random())
		wanted[watch.RangeStart], wanted[watch.RangeEnd] = r.First.String(), r.Last.String()
	}
	return wanted, nil
}

// writeMACRange puts the range where the pool and its users find it. A bad range is returned as problem; the old one stays.
func (r *reconciler) writeMACRange(ctx context.Context, h *hcov1beta1.HyperConverged) (problem, err error) {
	c := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: home.Namespace, Name: watch.RangeConfigMap}
	if err := r.direct.Get(ctx, key, c); err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read the range of the MAC pool: %w", err)
	}
	missing := c.Name == ""
	var present map[string]string
	if !missing {
		present = c.Data
	}
	wanted, problem := macRange(h, present, func() uint16 { return uint16(rand.Uint32()) })
	if problem != nil && missing {
		wanted, _ = macRange(&hcov1beta1.HyperConverged{}, nil, func() uint16 { return uint16(rand.Uint32()) }) // a pool needs a range
	}
	switch {
	case missing:
		c.ObjectMeta = metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{"app": "kubemacpool"}}
		c.Data = wanted
		err = r.direct.Create(ctx, c)
	case !maps.Equal(wanted, present):
		c.Data = wanted
		err = r.direct.Update(ctx, c)
	}
	if err != nil {
		return problem, fmt.Errorf("write the range of the MAC pool: %w", err)
	}
	return problem, nil
}
