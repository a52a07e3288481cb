// Package network decides addresses and hands the overlay's wanted rows to the Store: slices to nodes, addresses to pods,
// load balancers to services. It writes its decisions where they survive it (annotations, and a ledger of slices) and reads
// them back before it decides anything new. It must not know how a database or a node's switch is written.
package network

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/network/policy"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/requeue"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

// Rows takes the wanted rows of an owner; *ovn.Store is one. Owners are "cluster", "guard", "node/NAME", "network/NAME", "gateway/NAME",
// "nic/NAMESPACE/MACHINE/NIC", "pod/NAMESPACE/NAME", "service/NAMESPACE/NAME" and those of package policy.
type Rows interface {
	Set(owner string, rows []nb.Row)
	// SetAll sets the rows of several owners at once.
	SetAll(rows map[string][]nb.Row)
	Delete(owner string)
	// Gone tells whether the database has nothing of an owner any more.
	Gone(owner string) bool
	// Expect announces a source of rows; the returned function says that all its rows have been set once.
	Expect() (complete func())
}

// Chassis removes what a deleted node left in the Southbound database; *ovn.Southbound is one.
type Chassis interface {
	RemoveChassis(ctx context.Context, node string) error
}

// Config is what the controllers are made of.
type Config struct {
	Settings settings.Settings
	Rows     Rows
	Chassis  Chassis
	Log      *slog.Logger
	// ManagedTap tells whether a network binding plugin gives a guest its port itself. Default: l2bridge does.
	ManagedTap func(plugin string) bool
	// Workers is how many pods are handled at a time; each waits for the API server most of its time. Default 16.
	Workers int
}

// Network is the controllers of the default network and of all others.
type Network struct {
	Config
	client client.Client
	live   client.Reader // reads the API server itself, not the cache
	events events.EventRecorder

	book      *book
	ledger    *ledger
	tenants   *tenants
	sliced    slicedNetworks
	waits     *waits
	wakeNodes requeue.Wakeups
	wakePods  requeue.Wakeups
	wakeSvcs  requeue.Wakeups

	placing sync.Mutex // of machines' ports
	showing sync.Mutex // of networks

	registry     registry
	gateways     *gateways
	wakeGateways requeue.Wakeups

	enforcer      *policy.Enforcer
	multiPolicies *keySet
	wakePolicies  requeue.Wakeups // of multiPolicies

	wakeDefinitions requeue.Wakeups
	// networkWatchers are told, by name, of every network beside the default one that is new, has changed or is gone.
	networkWatchers []func(name string)

	complete  func()
	recovered chan struct{}
}

// AddToManager adds the controllers to a manager. They run on the leader only.
func AddToManager(m manager.Manager, c Config) (*Network, error) {
	if err := indexSlices(m); err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	if err := indexNetworks(m); err != nil {
		return nil, fmt.Errorf("index claims and pods by their networks: %w", err)
	}
	n := newNetwork(m.GetClient(), m.GetAPIReader(), m.GetEventRecorder("patchbay-network"), c)
	if err := m.Add(manager.RunnableFunc(n.start)); err != nil {
		return nil, err
	}
	for _, add := range []func(manager.Manager) error{n.addNodes, n.addDefinitions, n.addClaims, n.addPolicies, n.addMachines, n.addPods, n.addGateways, n.addServices} {
		if err := add(m); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func newNetwork(c client.Client, live client.Reader, recorder events.EventRecorder, config Config) *Network {
	if config.Workers == 0 {
		config.Workers = 16
	}
	if config.ManagedTap == nil {
		config.ManagedTap = func(plugin string) bool { return plugin == "l2bridge" }
	}
	n := &Network{
		Config: config, client: c, live: live, events: recorder,
		book: newBook(), ledger: newLedger(c, live, ledgerName, clusterRanges(config.Settings)), tenants: newTenants(config.Settings), waits: newWaits(),
		complete: config.Rows.Expect(), recovered: make(chan struct{}), gateways: newGateways(),
		enforcer: newEnforcer(config.Rows, config.Settings), multiPolicies: newKeySet(),
	}
	n.registry = n.tenants
	return n
}

// start restores what was decided before and lets the controllers go on from there.
func (n *Network) start(ctx context.Context) error {
	began := time.Now()
	n.Rows.Set("cluster", topology.ClusterRows(n.Settings))
	n.Rows.Set("guard", topology.GuardRows())
	if err := n.untilDone(ctx, "restore addresses", n.recover); err != nil {
		return nil // the context ended
	}
	close(n.recovered)
	n.complete()
	n.Log.Info("network restored", "nodes", len(n.book.nodeNames()), "pods", n.book.count(), "took", time.Since(began).Round(time.Millisecond))
	_ = n.untilDone(ctx, "apply the cluster's DNS service", n.applyClusterDNS)
	_ = n.untilDone(ctx, "apply the definition of the default network", n.applyDefaultNetwork)
	return nil
}

// untilDone repeats a step until it succeeds or the context ends.
func (n *Network) untilDone(ctx context.Context, what string, step func(context.Context) error) error {
	delay := 100 * time.Millisecond
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.Log.Warn("cannot "+what+"; trying again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, 10*time.Second)
	}
}

// afterRecovery lets a reconciler wait for start.
func (n *Network) afterRecovery(r func(context.Context, reconcile.Request) (reconcile.Result, error)) reconcile.Func {
	return func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		select {
		case <-ctx.Done():
			return reconcile.Result{}, ctx.Err()
		case <-n.recovered:
			return r(ctx, req)
		}
	}
}

// options let retries be fast at first: a pod waits behind each of them.
func (n *Network) options(workers int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: workers,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](20*time.Millisecond, 30*time.Second),
	}
}
