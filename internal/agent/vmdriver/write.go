package vmdriver

import (
	"context"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
	apiclient "sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/vmstate"
)

// Times after which a write is tried again: a lost race, which the cache will soon know of, and anything else.
const (
	retryConflict = 200 * time.Millisecond
	retryWrite    = time.Second
)

// written is our own last write, which the cache shows a moment later.
type written struct {
	from string // resource version that it was made from
	vmi  *virtv1.VirtualMachineInstance
}

// newer returns what was written, until the cache has something newer than what it was written from.
func (w *written) newer(cached *virtv1.VirtualMachineInstance) *virtv1.VirtualMachineInstance {
	if w != nil && cached.ResourceVersion == w.from {
		return w.vmi
	}
	return cached
}

// wish is the instance as it is to be.
func wish(vmi *virtv1.VirtualMachineInstance, r vmstate.Result) *virtv1.VirtualMachineInstance {
	wanted := vmi.DeepCopy()
	wanted.Status = r.Status
	if len(r.Labels) > 0 && wanted.Labels == nil {
		wanted.Labels = map[string]string{}
	}
	maps.Copy(wanted.Labels, r.Labels)
	return wanted
}

// write brings the instance's status to the wanted one and tells the events. Only a status that nobody has changed meanwhile is
// written: conditions are shared with the controller. It returns when to try again, or zero.
func (m *machine) write(ctx context.Context, vmi *virtv1.VirtualMachineInstance, r vmstate.Result) time.Time {
	if wanted := wish(vmi, r); !equality.Semantic.DeepEqual(vmi, wanted) {
		err := m.driver.Client.Patch(ctx, wanted, apiclient.MergeFromWithOptions(vmi, apiclient.MergeFromWithOptimisticLock{}))
		switch {
		case apierrors.IsConflict(err):
			return now().Add(retryConflict)
		case apierrors.IsNotFound(err):
			return time.Time{} // the cache will tell
		case err != nil:
			if ctx.Err() == nil {
				m.log.Warn("cannot write the status", "error", err)
			}
			return now().Add(retryWrite)
		}
		if wanted.Status.Phase != vmi.Status.Phase {
			m.log.Info("phase", "from", vmi.Status.Phase, "to", wanted.Status.Phase)
		}
		m.written = &written{from: vmi.ResourceVersion, vmi: wanted}
		m.nudge()
	}
	for _, e := range r.Events {
		m.driver.Events.Event(vmi, e.Type, e.Reason, e.Message)
	}
	return time.Time{}
}
