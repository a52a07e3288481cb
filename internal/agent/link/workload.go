package link

import (
	"context"

	"patchbay/internal/agent/link/advert"
)

// Workloads guards devices of pods and guests: beside what the datapath needs, they may not pose as a router. Not for devices
// behind which a real router may be, such as the node's own NICs.
type Workloads struct {
	Guard
	// Refused hears that the kernel does not take the rule. The device is used all the same: a node that connects nobody would be
	// worse than one whose neighbours have to be trusted.
	Refused func(ctx context.Context, device string, err error)
}

// Cover implements Guard.
func (w Workloads) Cover(ctx context.Context, device string) error {
	if err := w.Guard.Cover(ctx, device); err != nil {
		return err
	}
	w.Silence(ctx, device)
	return nil
}

// Silence drops the router advertisements that come out of a device. It may be repeated, also beside traffic.
func (w Workloads) Silence(ctx context.Context, device string) {
	if err := advert.Drop(device); err != nil {
		w.Refused(ctx, device, err)
	}
}

// MayRoute is the guard for a device on a network that gives no addresses: there a workload may well be the router.
func MayRoute(guard Guard) Guard {
	if w, ok := guard.(Workloads); ok {
		return w.Guard
	}
	return guard
}

// Silence makes up for what an earlier agent did not do to a device that is in use.
func Silence(ctx context.Context, guard Guard, device string) {
	if w, ok := guard.(Workloads); ok {
		w.Silence(ctx, device)
	}
}
