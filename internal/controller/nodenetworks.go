package controller

import (
	"context"

	"patchbay/internal/nmstate/rollout"
)

// addNodeNetworks says which nodes may carry out a node network policy next, and sums up what became of it.
func addNodeNetworks(_ context.Context, h *Host) error {
	return rollout.SetupWithManager(h.Manager, h.Direct, h.Log.With("part", "node networks"))
}
