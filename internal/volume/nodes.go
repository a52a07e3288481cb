package volume

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// nodeGone looks again at the volumes of a node that was deleted.
func (p *provisioner) nodeGone(ctx context.Context, e event.DeleteEvent, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	var volumes corev1.PersistentVolumeList
	if err := p.client.List(ctx, &volumes, client.MatchingLabels{NodeLabel: labelValue(e.Object.GetName())}); err != nil {
		return // the cache is not filled yet; then every volume is looked at anyway
	}
	for _, v := range volumes.Items {
		queue.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&v)})
	}
}
