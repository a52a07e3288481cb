package controller

import (
	"context"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/home"
)

// managedTap tells which binding plugins give a guest its port itself: the administrator says so in the configuration.
func managedTap(h *Host) func(plugin string) bool {
	return func(plugin string) bool {
		kv := &virtv1.KubeVirt{}
		if err := h.Manager.GetClient().Get(context.Background(), home.KubeVirt, kv); err != nil || kv.Spec.Configuration.NetworkConfiguration == nil {
			return plugin == "l2bridge" // not made yet: the default
		}
		return kv.Spec.Configuration.NetworkConfiguration.Binding[plugin].DomainAttachmentType == virtv1.ManagedTap
	}
}
