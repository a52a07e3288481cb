// Package vmdriver runs the virtual machines of a node: it observes their API objects, pods, launchers and QEMUs, asks package
// vmstate what to do, and does it. A machine outlives the driver: a new one attaches to what it finds. The package decides
// nothing that vmstate can decide.
package vmdriver

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"patchbay/internal/agent/migrationnet"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/machinepod"
	"patchbay/internal/qemu"
)

// PodNetworks says how the node's pods are connected.
type PodNetworks interface {
	Get(types.UID) (podnet.Pod, bool)
}

// Recorder tells people about objects.
type Recorder interface {
	Event(object runtime.Object, kind, reason, message string)
}

// Config is what a Driver needs.
type Config struct {
	Node string
	// KubeletRoot is the kubelet's root directory, below which the run directories of pods are found.
	KubeletRoot string
	// Client reads instances and pods of the node (from a cache) and writes instances. Live reads claims, which are needed once
	// in a machine's life, from the API server.
	Client client.Client
	Live   client.Reader
	// Arriving reads instances on their way to this node, from a cache of ArrivingOptions; nil: only Live has them.
	Arriving cache.Cache
	Pods     PodNetworks
	// Taps joins NICs to overlay networks whose port waits for a tap; nil: they are wired by their binding.
	Taps Wirer
	// Wirers join the others to networks, by the name of the binding.
	Wirers map[string]Wirer
	// OpenVhost opens the kernel's virtio backend for one queue of a NIC; nil: the node has none. See OpenVhostNet.
	OpenVhost func() (*os.File, error)
	// UserFault is the device that post-copy needs, empty: this node receives no guest by post-copy. QEMU gets it open.
	UserFault string
	EFI       *qemu.EFI // firmware in the launcher's image; nil: none
	// TLSDir holds the agent's certificate, which migrations are secured with, and StateDir what must outlive the agent.
	TLSDir   string
	StateDir string
	// MigrationPlace says where migrations come to and leave from; its error is why they cannot.
	MigrationPlace func(context.Context) (migrationnet.Place, error)
	Events         Recorder
	Log            *slog.Logger
}

// Driver runs the machines of one node.
type Driver struct {
	Config

	mu       sync.Mutex
	machines map[types.NamespacedName]*machine
	running  sync.WaitGroup
	ready    chan struct{} // closed when base is set
	base     context.Context
}

// New makes a driver.
func New(c Config) *Driver {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{Config: c, machines: map[types.NamespacedName]*machine{}, ready: make(chan struct{})}
}

// CacheOptions keep the instances of other nodes out of the agent's memory.
func CacheOptions(node string) map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&virtv1.VirtualMachineInstance{}: {Label: labels.SelectorFromSet(labels.Set{virtv1.NodeNameLabel: node})},
	}
}

// AddToManager has the manager run the driver.
func (d *Driver) AddToManager(m manager.Manager) error {
	b := builder.ControllerManagedBy(m).
		Named("virtualmachineinstances").
		For(&virtv1.VirtualMachineInstance{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(machineOfPod), builder.WithPredicates(predicate.NewPredicateFuncs(machinepod.Is))).
		WithOptions(controller.Options{SkipNameValidation: new(true)})
	if d.Arriving != nil {
		b = b.WatchesRawSource(source.Kind(d.Arriving, &virtv1.VirtualMachineInstance{},
			&handler.TypedEnqueueRequestForObject[*virtv1.VirtualMachineInstance]{}))
	}
	if err := b.Complete(d); err != nil {
		return err
	}
	return m.Add(d)
}

// ArrivingOptions are for a cache of the instances that migrate to the node.
func ArrivingOptions(node string) map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&virtv1.VirtualMachineInstance{}: {Label: labels.SelectorFromSet(labels.Set{virtv1.MigrationTargetNodeNameLabel: node})},
	}
}

// machineOfPod names the instance that a launcher's pod is of.
func machineOfPod(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetAnnotations()[virtv1.DomainAnnotation]
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

// Start runs machines until ctx ends, and then waits until all are let go. Guests are not touched.
func (d *Driver) Start(ctx context.Context) error {
	d.base = ctx
	close(d.ready)
	<-ctx.Done()
	d.running.Wait()
	return nil
}

// Reconcile tells the instance's machine that something may have changed, and makes one if there is none.
func (d *Driver) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	select {
	case <-d.ready:
	case <-ctx.Done():
		return reconcile.Result{}, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.base.Err() != nil {
		return reconcile.Result{}, nil
	}
	m := d.machines[request.NamespacedName]
	if m == nil {
		m = newMachine(d, request.NamespacedName)
		d.machines[request.NamespacedName] = m
		d.running.Go(func() { m.run(d.base) })
	}
	m.nudge()
	return reconcile.Result{}, nil
}

// forget takes a machine off the list unless somebody has nudged it: then it must look once more.
func (d *Driver) forget(m *machine) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-m.nudges: // taken: the turn that follows looks at everything
		return false
	default:
		delete(d.machines, m.key)
		return true
	}
}

// lookup returns a machine that is being run.
func (d *Driver) lookup(key types.NamespacedName) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.machines[key]
}

// runDir is where a pod's run directory is on the node.
func (d *Driver) runDir(pod types.UID) string {
	return filepath.Join(d.KubeletRoot, "pods", string(pod), "volumes", "kubernetes.io~empty-dir", protocol.RunVolume)
}

// now is the time as the API has it: whole seconds would compare equal too often, so only the monotonic part is dropped.
func now() time.Time { return time.Now().Round(0) }
