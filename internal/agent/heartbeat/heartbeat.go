// Package heartbeat says on the agent's Node object that the agent lives and what the node offers to virtual machines, in the
// labels and the annotation that schedulers, controllers and people look at. It acts on nothing that it reads there.
package heartbeat

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/qemu"
)

// Period is how often a heartbeat is written. The controller takes a node out of service when several are missing.
const Period = time.Minute

// Config is what a Heart needs.
type Config struct {
	Node   string
	Client client.Client
	// Accelerator is what executes guest code on this node now.
	Accelerator func() qemu.Accelerator
	Log         *slog.Logger
}

// Heart writes heartbeats.
type Heart struct{ Config }

// New makes a heart.
func New(c Config) *Heart {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Heart{c}
}

// AddToManager has the manager run the heart. The manager's cache must hold the node.
func (h *Heart) AddToManager(m manager.Manager) error {
	own := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == h.Node })
	return ctrl.NewControllerManagedBy(m).Named("heartbeat").For(&corev1.Node{}, builder.WithPredicates(own, labelChanges)).
		WithOptions(controller.Options{SkipNameValidation: new(true)}).Complete(h)
}

// labelChanges leaves out what the kubelet writes every few seconds.
var labelChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || !hasLabels(e.ObjectNew)
}}

func hasLabels(o client.Object) bool {
	return o.GetLabels()[virtv1.NodeSchedulable] != "" && o.GetLabels()[qemu.AcceleratorLabel] != ""
}

// Reconcile writes a heartbeat when one is due.
func (h *Heart) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	node := &corev1.Node{}
	if err := h.Client.Get(ctx, request.NamespacedName, node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	accelerator, now := h.Accelerator(), time.Now()
	wait := due(node, accelerator, now)
	if wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if was := node.Labels[qemu.AcceleratorLabel]; was != string(accelerator) {
		h.Log.Info("guest code is executed by", "accelerator", accelerator, "before", was)
	}
	patch, err := beat(accelerator, now)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := h.Client.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return reconcile.Result{}, fmt.Errorf("write the heartbeat of node %s: %w", h.Node, err)
	}
	return reconcile.Result{RequeueAfter: Period}, nil
}

// due is how long the next heartbeat of a node may wait: not at all when the node says too little or something wrong. A label
// "false" is put right by the next heartbeat only, so that two who disagree do not write all the time.
func due(node *corev1.Node, accelerator qemu.Accelerator, now time.Time) time.Duration {
	last, err := time.Parse(time.RFC3339, node.Annotations[virtv1.VirtHandlerHeartbeat])
	if err != nil || !hasLabels(node) || node.Labels[qemu.AcceleratorLabel] != string(accelerator) || last.After(now.Add(Period)) {
		return 0
	}
	return max(0, last.Add(Period).Sub(now))
}

// beat is the patch that a heartbeat is.
func beat(accelerator qemu.Accelerator, now time.Time) ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"labels":      map[string]string{virtv1.NodeSchedulable: "true", qemu.AcceleratorLabel: string(accelerator)},
		"annotations": map[string]string{virtv1.VirtHandlerHeartbeat: now.UTC().Format(time.RFC3339)},
	}})
}
