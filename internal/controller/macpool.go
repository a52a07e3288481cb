package controller

import (
	"math/rand/v2"
	"time"

	"patchbay/internal/admission"
	"patchbay/internal/home"
	"patchbay/internal/macpool"
	"patchbay/internal/macpool/assign"
	"patchbay/internal/macpool/watch"
)

// newMACPool makes the pool that admission takes NICs' addresses from, and the controllers that keep it true.
func newMACPool(h *Host) (admission.MACs, error) {
	pool := macpool.New(macpool.Config{Random: rand.Uint64N})
	watching, err := watch.AddToManager(h.Manager, watch.Config{
		Pool: pool, Namespace: home.Namespace, Log: h.Log.With("part", "mac pool"),
		Webhooks: admission.MACConfiguration, ForVMs: admission.MACForVMs, ForPods: admission.MACForPods,
	})
	if err != nil {
		return nil, err
	}
	return &assign.Assigner{Config: assign.Config{
		Pool: pool, Ready: watching.Ready, Off: watching.Off, Exists: watching.Exists, Now: time.Now,
	}}, nil
}
