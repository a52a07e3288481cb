package migrationnet

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/requeue"
)

// How soon a node looks again: a definition may have changed, or what kept the node off the network may be gone.
const (
	lookAgain = 30 * time.Second
	tryAgain  = 5 * time.Second
)

// Reporter has a node join the network as soon as one is wanted, long before a migration needs it, and says on the Node object how it
// got on: an administrator who makes a mistake learns of it at once.
type Reporter struct {
	network *Network
	client  client.Client
	wake    requeue.Wakeups
}

// NewReporter makes a Reporter.
func NewReporter(n *Network, c client.Client) *Reporter {
	r := &Reporter{network: n, client: c}
	n.changed = func() { r.wake.Wake(only.NamespacedName) }
	return r
}

// AddToManager has the manager run it.
func (r *Reporter) AddToManager(m manager.Manager) error {
	return ctrl.NewControllerManagedBy(m).Named("migration-network").
		Watches(&virtv1.KubeVirt{}, requeue.One(only)).WatchesRawSource(r.wake.Source()).
		WithOptions(controller.Options{SkipNameValidation: new(true)}).Complete(r)
}

// only is what every event asks for: there is one node to see to.
var only = reconcile.Request{}

// Reconcile joins or leaves, and reports.
func (r *Reporter) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	name, place, err := r.network.join(ctx)
	if name == "" {
		if err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{}, r.report(ctx, nil)
	}
	said, next := hcov1beta1.MigrationMember{Network: name, Address: place.Address}, lookAgain
	if err != nil {
		said.Problem, next = err.Error(), tryAgain
	}
	text, err := json.Marshal(said)
	if err != nil {
		return reconcile.Result{}, err
	}
	report := string(text)
	return reconcile.Result{RequeueAfter: next}, r.report(ctx, &report)
}

// report writes the annotation if it says something else; nil removes it.
func (r *Reporter) report(ctx context.Context, text *string) error {
	node := &corev1.Node{}
	if err := r.client.Get(ctx, client.ObjectKey{Name: r.network.Node}, node); err != nil {
		return fmt.Errorf("read node %s: %w", r.network.Node, err)
	}
	was, said := node.Annotations[hcov1beta1.MigrationNetworkAnnotation]
	if said == (text != nil) && (text == nil || was == *text) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{hcov1beta1.MigrationNetworkAnnotation: text}}})
	if err != nil {
		return err
	}
	if err := r.client.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("say on node %s how it got on with the migration network: %w", r.network.Node, err)
	}
	return nil
}
