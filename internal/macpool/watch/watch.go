// Package watch keeps the pool of MAC addresses true to what the API server stores: it rebuilds it after a start, confirms or takes
// back what admission promised, follows the range that the administrator chose, and reports addresses that are in use twice. It
// must not choose addresses.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	hooks "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/events"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"patchbay/internal/machinepod"
	"patchbay/internal/macpool"
	"patchbay/internal/macpool/assign"
)

const (
	// promiseTime is how long an admitted request may take until it is stored; after that its addresses are looked after.
	promiseTime = 5 * time.Minute
	healEvery   = 3 * time.Second
	// patience is how long an admission waits for the pool: it must answer before the API server gives up.
	patience = 3 * time.Second
)

// Config is what the controllers are made of.
type Config struct {
	Pool *macpool.Pool
	// Namespace holds the ConfigMap with the range.
	Namespace string
	// Webhooks is the name of the configuration whose selectors say which namespaces take part; ForVMs and ForPods are the webhooks.
	Webhooks, ForVMs, ForPods string
	Log                       *slog.Logger
	Now                       func() time.Time
}

// Watch is the controllers of the pool.
type Watch struct {
	Config
	client client.Client
	live   client.Reader // reads the API server itself, not the cache
	events events.EventRecorder
	gauges *gauges

	off     atomic.Bool
	deleted sync.Map // of machines: when they were last stored, by key

	ranged  chan struct{} // closed when the range is known
	rebuilt chan struct{} // closed when every address that is held is known
}

// AddToManager adds the controllers to a manager.
func AddToManager(m manager.Manager, c Config) (*Watch, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	w := &Watch{
		Config: c, client: m.GetClient(), live: m.GetAPIReader(), events: m.GetEventRecorder("kubemacpool"),
		gauges: newGauges(), ranged: make(chan struct{}), rebuilt: make(chan struct{}),
	}
	for _, run := range []manager.RunnableFunc{w.rebuild, w.heal} {
		if err := m.Add(run); err != nil {
			return nil, err
		}
	}
	for _, add := range []func(manager.Manager) error{w.addRange, w.addOwners, w.addCollisions} {
		if err := add(m); err != nil {
			return nil, fmt.Errorf("watch for the MAC pool: %w", err)
		}
	}
	return w, nil
}

// Ready waits a little for the pool and says whether it may be asked.
func (w *Watch) Ready(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return w.wait(bounded) == nil
}

func (w *Watch) wait(ctx context.Context) error {
	for _, known := range []chan struct{}{w.ranged, w.rebuilt} {
		select {
		case <-known:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Off says that the administrator has no use for the pool.
func (w *Watch) Off() bool { return w.off.Load() }

// Exists says whether a machine is stored. What the cache still shows may be gone: only the API server says so for certain.
func (w *Watch) Exists(ctx context.Context, namespace, name string) bool {
	key, vm := client.ObjectKey{Namespace: namespace, Name: name}, &virtv1.VirtualMachine{}
	return w.client.Get(ctx, key, vm) == nil && w.live.Get(ctx, key, vm) == nil
}

// rebuild learns all addresses that are held. Machines of namespaces that do not take part count too: what they have must not be
// given to others.
func (w *Watch) rebuild(ctx context.Context) error {
	began := w.Now()
	for {
		n, err := w.learn(ctx)
		if err == nil {
			w.Log.Info("MAC pool rebuilt", "machines", n, "addresses", w.Pool.Held(), "took", w.Now().Sub(began).Round(time.Millisecond))
			close(w.rebuilt)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		w.Log.Warn("cannot rebuild the MAC pool; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (w *Watch) learn(ctx context.Context) (int, error) {
	var machines virtv1.VirtualMachineList
	if err := w.client.List(ctx, &machines); err != nil {
		return 0, fmt.Errorf("list virtual machines: %w", err)
	}
	for i := range machines.Items {
		vm := &machines.Items[i]
		stamp, nics := assign.Stored(vm)
		w.Pool.Align(assign.VMOwner(vm.Namespace, vm.Name), stamp, nics)
	}
	var pods corev1.PodList
	if err := w.client.List(ctx, &pods); err != nil {
		return 0, fmt.Errorf("list pods: %w", err)
	}
	takesPart, err := w.selector(ctx, w.ForPods)
	if err != nil {
		return 0, err
	}
	for i := range pods.Items {
		if pod := &pods.Items[i]; w.holds(ctx, pod, takesPart) {
			w.Pool.Align(assign.PodOwner(pod.Namespace, pod.Name), w.Now(), assign.PodAddresses(pod))
		}
	}
	return len(machines.Items), nil
}

// holds says that a pod's addresses are the pool's business.
func (w *Watch) holds(ctx context.Context, pod *corev1.Pod, takesPart labels.Selector) bool {
	return !machinepod.Is(pod) && len(assign.PodAddresses(pod)) > 0 && w.matches(ctx, pod.Namespace, takesPart)
}

// selector says which namespaces take part in what one of the webhooks does.
func (w *Watch) selector(ctx context.Context, webhook string) (labels.Selector, error) {
	if w.Off() {
		return labels.Nothing(), nil
	}
	c := &hooks.MutatingWebhookConfiguration{}
	if err := w.client.Get(ctx, client.ObjectKey{Name: w.Webhooks}, c); err != nil {
		if apierrors.IsNotFound(err) {
			return labels.Nothing(), nil // not registered yet: nobody was given anything
		}
		return nil, fmt.Errorf("find out where the MAC pool is at work: %w", err)
	}
	for _, h := range c.Webhooks {
		if h.Name == webhook {
			return metav1.LabelSelectorAsSelector(h.NamespaceSelector)
		}
	}
	return labels.Nothing(), nil
}

func (w *Watch) matches(ctx context.Context, namespace string, s labels.Selector) bool {
	ns := &corev1.Namespace{}
	return w.client.Get(ctx, client.ObjectKey{Name: namespace}, ns) == nil && s.Matches(labels.Set(ns.Labels))
}

// heal takes back what requests were promised that nobody stored.
func (w *Watch) heal(ctx context.Context) error {
	if w.wait(ctx) != nil {
		return nil
	}
	tick := time.NewTicker(healEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := w.healOnce(ctx, w.Now().Add(-promiseTime)); err != nil && ctx.Err() == nil {
			w.Log.Warn("cannot look after MAC addresses that were promised; trying again", "error", err)
		}
	}
}

func (w *Watch) healOnce(ctx context.Context, by time.Time) error {
	var problems []error
	for _, owner := range w.Pool.Overdue(by) {
		problems = append(problems, w.settle(ctx, owner, by))
	}
	return errors.Join(problems...)
}

// settle looks at what is really stored of an owner.
func (w *Watch) settle(ctx context.Context, owner macpool.Owner, by time.Time) error {
	key := client.ObjectKey{Namespace: owner.Namespace, Name: owner.Name}
	nics := map[string]macpool.Address{}
	var err error
	if owner == assign.PodOwner(owner.Namespace, owner.Name) {
		pod := &corev1.Pod{}
		if err = w.live.Get(ctx, key, pod); err == nil {
			nics = assign.PodAddresses(pod)
		}
	} else {
		vm := &virtv1.VirtualMachine{}
		if err = w.live.Get(ctx, key, vm); err == nil {
			_, nics = assign.Stored(vm)
		}
	}
	if client.IgnoreNotFound(err) != nil && key.Name != "" { // an object whose name was to be generated is found under that name
		return fmt.Errorf("look for %s: %w", owner, err)
	}
	w.Pool.Align(owner, by, nics)
	return nil
}
