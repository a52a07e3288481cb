package controller

import (
	"context"

	"patchbay/internal/tenancy"
)

// addTenancy makes networks for those who ask for them.
func addTenancy(_ context.Context, h *Host) error {
	t, err := tenancy.AddToManager(h.Manager, tenancy.Config{Settings: h.Settings, Running: h.Carried})
	if err != nil {
		return err
	}
	h.Refused = append(h.Refused, t.Report)
	return nil
}
