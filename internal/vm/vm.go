// Package vm runs virtual machines: it keeps for each VirtualMachine the instance that its run strategy asks for, and for each
// VirtualMachineInstance the pod that its guest lives in, on nodes whose agents live. The controllers here only read, ask package lifecycle what to do, and
// do it; they must not decide anything themselves. What happens inside a pod's node is the agent's.
package vm

import (
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/client-go/util/workqueue"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/admission"
	"patchbay/internal/vm/lifecycle"
)

// Config is what the controllers need besides a manager. The manager's client should not be throttled: a start of a machine
// takes about eight requests.
type Config struct {
	// LauncherImage is the image of the pods' compute container.
	LauncherImage string
	// Cluster returns the KubeVirt object in force, or nil when there is none.
	Cluster func() *virtv1.KubeVirt
	// Workers is how many machines, and how many instances, are worked on at the same time; 0 means 8.
	Workers int
	// Now and Jitter replace the clock and the random numbers in [0,1) in tests.
	Now    func() time.Time
	Jitter func() float64

	tenant func(namespace string) bool
}

const defaultWorkers = 8

// Failed steps are tried again after these times.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	// staleRetry is the net under steps that ended because an object had changed: the event of that change starts the next
	// one, long before.
	staleRetry = time.Second
)

func (c *Config) complete() {
	if c.Cluster == nil {
		c.Cluster = func() *virtv1.KubeVirt { return nil }
	}
	if c.Workers == 0 {
		c.Workers = defaultWorkers
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
}

func (c *Config) settings() lifecycle.Settings {
	kv := c.Cluster()
	var configuration virtv1.KubeVirtConfiguration
	if kv != nil {
		configuration = kv.Spec.Configuration
	}
	s := lifecycle.SettingsFrom(c.LauncherImage, configuration)
	s.DefaultNetwork = admission.Defaulter{Policy: admission.PolicyFrom(kv), Tenant: c.tenant}.DefaultNetwork
	return s
}

func (c *Config) options() controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: c.Workers,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](firstRetry, lastRetry),
	}
}

// SetupWithManager adds the controllers. The definitions of VirtualMachine and VirtualMachineInstance must be served when the
// manager starts.
func SetupWithManager(mgr ctrl.Manager, config Config) error {
	config.complete()
	config.tenant = admission.TenantOf(mgr.GetClient())
	if err := addIndexes(mgr); err != nil {
		return fmt.Errorf("index virtual machines: %w", err)
	}
	e := executor{client: mgr.GetClient(), events: mgr.GetEventRecorder("virtualmachine-controller")}
	if err := newMachines(mgr.GetClient(), mgr.GetAPIReader(), e, config).setUp(mgr); err != nil {
		return fmt.Errorf("virtual machine controller: %w", err)
	}
	if err := newInstances(mgr.GetClient(), mgr.GetAPIReader(), e, config).setUp(mgr); err != nil {
		return fmt.Errorf("virtual machine instance controller: %w", err)
	}
	migrations := newMigrations(mgr.GetClient(), mgr.GetAPIReader(), e, config)
	if err := migrations.setUp(mgr); err != nil {
		return fmt.Errorf("migration controller: %w", err)
	}
	evacuations := evacuations{cached: mgr.GetClient(), live: mgr.GetAPIReader(), executor: e, config: config, migrations: migrations}
	if err := evacuations.setUp(mgr); err != nil {
		return fmt.Errorf("evacuation controller: %w", err)
	}
	if err := (&nodes{cached: mgr.GetClient(), executor: e, config: config}).setUp(mgr); err != nil {
		return fmt.Errorf("node controller: %w", err)
	}
	return nil
}

// reader reads objects; from the cache, or from the API server itself.
type reader = client.Reader
