// Package agent is the node side of Patchbay: one process per node that holds what the node's jobs share (connections,
// caches, records) and runs them. The jobs are listed in parts.go and live in packages of their own that do not know each
// other. An agent that stops, however it stops, tears nothing down.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/nodenet"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/agent/whereabouts"
	"patchbay/internal/settings"
)

// Config is what the command line says.
type Config struct {
	Settings   settings.Settings
	Kubeconfig string
	Node       string // name of the Kubernetes node
	Dir        string // of the node; the agent's own files are in Dir/agent
	OVS        string // endpoint of the Open vSwitch database
	BinDir     string // where the programs that the agent installs lie (patchbay-cni)
	AnyNetns   bool   // work in a network namespace that has none of the node's addresses
	Log        *slog.Logger
}

// File returns a path in the agent's own directory.
func (c Config) File(name ...string) string {
	return filepath.Join(append([]string{c.Dir, "agent"}, name...)...)
}

// KubeletRoot is the root directory of the node's kubelet.
func (c Config) KubeletRoot() string { return filepath.Join(c.Dir, "kubelet") }

// Host is what the parts of an agent share.
type Host struct {
	Config
	// Manager carries the Kubernetes client and cache and runs the parts. Its cache holds this node's pods and node only;
	// a part that watches another kind by node adds it to cacheOptions.
	Manager manager.Manager
	// OVS plugs devices. Each device must be covered by Guard before it is set up or plugged.
	OVS      *ovs.Client
	Datapath ovs.Datapath
	Guard    link.Guard
	// Workloads is the guard for devices of pods and guests.
	Workloads link.Workloads
	// Pods says how this node's pods are connected.
	Pods *podnet.Store
	// Network is this node's side of the overlay.
	Network *nodenet.Network

	// addresses gives addresses of other plugins' networks; preparePlugin completes the configuration of a plugin.
	addresses     *whereabouts.Plugin
	preparePlugin func(ctx context.Context, plugin map[string]any) error
}

// Part is one job of the agent. Add registers what it does with the host's manager and returns; it must not block.
type Part struct {
	Name string
	Add  func(ctx context.Context, h *Host) error
}

// Run runs the parts until the context ends or one of them fails.
func Run(ctx context.Context, c Config, parts []Part) error {
	unlock, err := lock(c.File("lock"))
	if err != nil {
		return err
	}
	defer unlock()
	ctrllog.SetLogger(logr.FromSlogHandler(c.Log.Handler()))
	if err := rollBackNetwork(ctx, c); err != nil {
		return err
	}
	h, err := open(ctx, c)
	if err != nil {
		return err
	}
	defer h.OVS.Close()
	for _, part := range parts {
		if err := part.Add(ctx, h); err != nil {
			return fmt.Errorf("start %s: %w", part.Name, err)
		}
	}
	return h.Manager.Start(ctx)
}

// lock keeps a second agent off the same node; the kernel releases it when the process ends.
func lock(path string) (func(), error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's directory: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another agent runs on this node (it holds %s); stop it first: %w", path, err)
	}
	return func() { file.Close() }, nil
}

func open(ctx context.Context, c Config) (*Host, error) {
	h := &Host{Config: c}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	if h.Manager, err = newManager(ctx, config, c); err != nil {
		return nil, err
	}
	if err := h.openPods(); err != nil {
		return nil, err
	}
	if h.OVS, err = ovs.Connect(ctx, c.OVS, c.Log); err != nil {
		return nil, err
	}
	if err := h.openDatapath(ctx); err != nil {
		h.OVS.Close()
		return nil, err
	}
	return h, nil
}

func newManager(ctx context.Context, config *rest.Config, c Config) (manager.Manager, error) {
	config.UserAgent = "patchbay-agent/" + c.Node
	// Requests of pods that start together must not wait for each other; the API server has its own fairness.
	config.QPS = -1
	graceful := 5 * time.Second
	options := manager.Options{
		Scheme:                  newScheme(),
		MapperProvider:          newMapper,
		Cache:                   withNodePolicies(withMachines(cacheOptions(c.Node), c.Node), c.Node),
		Metrics:                 server.Options{BindAddress: "0"},
		GracefulShutdownTimeout: &graceful,
	}
	var m manager.Manager
	said := ""
	err := backoff.Retry(func() (err error) {
		m, err = manager.New(config, options)
		if err != nil && err.Error() != said {
			said = err.Error()
			c.Log.Info("waiting for the API server and its kinds", "reason", said)
		}
		return err
	}, backoff.WithContext(patient(), ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return m, nil
}

// patient retries soon and never gives up: in a new cluster the controller registers the kinds while the agents start.
func patient() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.MaxElapsedTime = 100*time.Millisecond, time.Second, 0
	return b
}

// cacheOptions keep the agent's memory proportional to its own node.
func cacheOptions(node string) cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:  {Field: fields.OneTermEqualSelector("spec.nodeName", node)},
			&corev1.Node{}: {Field: fields.OneTermEqualSelector("metadata.name", node)},
		},
	}
}

func (h *Host) openPods() error {
	pods, broken, err := podnet.OpenStore(h.File("pods"))
	if err != nil {
		return err
	}
	for _, err := range broken {
		h.Log.Error("pod record set aside", "error", err)
	}
	h.Pods = pods
	h.Log.Info("pod records read", "pods", len(pods.List()))
	return nil
}

func (h *Host) openDatapath(ctx context.Context) (err error) {
	if h.Datapath, err = h.OVS.EnsureIntegrationBridge(ctx); err != nil {
		return err
	}
	h.Log.Info("Open vSwitch datapath", "bridge", ovs.IntegrationBridge, "datapath", h.Datapath.String())
	h.Guard = link.Open{}
	if h.Datapath == ovs.Userspace {
		h.Guard, err = link.NewShield()
	}
	h.Workloads = h.workloads()
	return err
}
