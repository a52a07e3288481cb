package controller

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
)

// metricsPath is where monitoring reads the controller's metrics. A reader shows a token of somebody who may get this path.
const metricsPath = "/metrics"

func addMetrics(_ context.Context, h *Host) error {
	protect, err := filters.WithAuthenticationAndAuthorization(h.REST, h.Manager.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("protect the metrics: %w", err)
	}
	handler, err := protect(h.Manager.GetLogger(), promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{}))
	if err != nil {
		return fmt.Errorf("protect the metrics: %w", err)
	}
	h.Mux.Handle("GET "+metricsPath, handler)
	return nil
}
