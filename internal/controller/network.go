package controller

import (
	"context"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/hyperconverged"
)

// managedTap tells which binding plugins give a guest its port itself: the administrator says so in the configuration.
func managedTap(h *Host) func(plugin string) bool {
	return func(plugin string) bool {
		kv := &virtv1.KubeVirt{}
		key := client.ObjectKey{Namespace: hyperconverged.Namespace, Name: hyperconverged.KubeVirtName}
		if err := h.Manager.GetClient().Get(context.Background(), key, kv); err != nil || kv.Spec.Configuration.NetworkConfiguration == nil {
			return plugin == "l2bridge" // not made yet: the default
		}
		return kv.Spec.Configuration.NetworkConfiguration.Binding[plugin].DomainAttachmentType == virtv1.ManagedTap
	}
}
