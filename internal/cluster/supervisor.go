package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/cluster/components"
	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/images"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
	"patchbay/internal/cluster/preflight"
	"patchbay/internal/cluster/supervise"
)

// supervisorUnit is the supervisor's own name among its units' marks.
const supervisorUnit = "supervisor"

func supervisorLock(c layout.Cluster) string { return filepath.Join(c.Run(), "supervisor.lock") }

// Supervise runs a cluster's supervisor until the context ends; then all components are stopped. Killing it instead leaves them
// running, and the next supervisor adopts them.
func Supervise(ctx context.Context, c layout.Cluster, log *slog.Logger) error {
	spec, err := readSpec(c)
	if err != nil {
		return err
	}
	held, err := takeLock(supervisorLock(c))
	if errors.Is(err, errLocked) {
		return fmt.Errorf("cluster %q has a supervisor already", c.Name)
	}
	if err != nil {
		return err
	}
	defer held.release()
	if err := supervise.Subreaper(); err != nil {
		return err
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	api := newProxy(c, spec.APIPort, log)
	units, err := unitsOf(c, spec, api)
	if err != nil {
		return err
	}
	supervisor, err := supervise.New(superviseConfig(c, log), units)
	if err != nil {
		return err
	}
	err = supervisor.Run(ctx)
	api.wait()
	return err
}

// raiseFileLimit lets the components open as many files as the host allows. They inherit it; a shell's usual 1024 is too little for
// Open vSwitch and etcd.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

func superviseConfig(c layout.Cluster, log *slog.Logger) supervise.Config {
	return supervise.Config{Run: c.Run(), Logs: c.Logs(), Mark: c.Dir(), Log: log}
}

// unitsOf lists what runs in a cluster, for the supervisor and for everybody who asks the same processes for their health.
func unitsOf(c layout.Cluster, spec Spec, api *proxy) ([]supervise.Unit, error) {
	programs, err := preflight.Programs()
	if err != nil {
		return nil, err
	}
	kernel, err := fabric.KernelDatapath()
	if err != nil {
		return nil, err
	}
	hooks := components.Hooks{
		Bootstrap:  func(ctx context.Context) error { return applyFirstObjects(ctx, c, spec) },
		LoadImages: func(ctx context.Context, node layout.Node) error { return loadBuiltImages(ctx, programs, node) },
		ServeAPI:   api.start,
		ProbeAPI:   api.probe,
	}
	if spec.Expose {
		hooks.Expose = func(ctx context.Context) error { return fabric.Expose(ctx, c, spec.MTU) }
	}
	return components.List(components.Input{
		Cluster: c, Nodes: spec.Nodes, Settings: spec.settings(), Programs: programs, KernelDatapath: kernel, SandboxImage: images.SandboxName,
		ExtraNICs: spec.ExtraNICs,
		Hooks:     hooks,
	}), nil
}

func applyFirstObjects(ctx context.Context, c layout.Cluster, spec Spec) error {
	config, err := restConfig(c)
	if err != nil {
		return err
	}
	var names []string
	for _, node := range c.Nodes(spec.Nodes) {
		names = append(names, node.Name)
	}
	return bootstrap.Apply(ctx, config, names)
}

// restConfig connects from the host straight into the fabric, without the proxy.
func restConfig(c layout.Cluster) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.ComponentKubeconfig("supervisor"))
	if err != nil {
		return nil, err
	}
	config.Dial = namespace.DialContext(c.FabricNamespace())
	config.QPS, config.Burst = 100, 200
	return config, nil
}

// loadBuiltImages brings the sandbox image and every built archive into a node.
func loadBuiltImages(ctx context.Context, programs components.Programs, node layout.Node) error {
	sandbox := node.Path("containerd", "sandbox.tar")
	if err := images.WriteSandbox(filepath.Join(filepath.Dir(programs.PatchbayKube), preflight.PauseProgram), sandbox); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(programs.PatchbayKube)), "build", "images", "*.tar"))
	if err != nil {
		return err
	}
	_, err = images.Load(ctx, node.ContainerdSocket(), append([]string{sandbox}, archives...)...)
	return errors.Join(err, os.Remove(sandbox))
}
