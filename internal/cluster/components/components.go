// Package components lists what runs in a local cluster: every process with its command line, its namespaces, what it waits for and
// how its health is asked. The command lines are pure functions of the input; the hooks around them are thin.
package components

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
	"patchbay/internal/cluster/supervise"
	"patchbay/internal/settings"
)

// Programs are absolute paths of what is run.
type Programs struct {
	Patchbay      string
	PatchbayKube  string
	Shim          string // containerd-shim-runc-v2
	CNI           string // patchbay-cni
	Runc          string
	OVSDBServer   string
	OVSVSwitchd   string
	OVNNorthd     string
	OVNController string
}

// Input is everything the list depends on.
type Input struct {
	Cluster  layout.Cluster
	Nodes    int
	Settings settings.Settings
	Programs Programs
	// KernelDatapath is true when Open vSwitch forwards in the kernel.
	KernelDatapath bool
	// ExtraNICs is how many cards every node has besides the fabric's.
	ExtraNICs int
	// Images are archives that every node gets, and SandboxImage is the one that holds a pod's namespaces.
	Images       []string
	SandboxImage string
	// Hooks are the steps whose work lies in packages that the list need not know.
	Hooks Hooks
}

// Hooks do steps of the cluster's start.
type Hooks struct {
	// Bootstrap applies the cluster's first objects.
	Bootstrap func(context.Context) error
	// ServeAPI makes the API reachable on the host, and ProbeAPI tells whether it is.
	ServeAPI, ProbeAPI func(context.Context) error
	// Expose gives the host a leg in the fabric; nil when it has none.
	Expose func(context.Context) error
	// LoadImages brings images into a node.
	LoadImages func(context.Context, layout.Node) error
}

// Names of the units of the control plane.
const (
	Fabric            = "fabric"
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Bootstrap         = "bootstrap"
	APIProxy          = "api-proxy"
	Expose            = "expose"
	Northbound        = "ovn-nb"
	Southbound        = "ovn-sb"
	Northd            = "ovn-northd"
	Controller        = "controller"
	DNS               = "dns"
)

// Names of the units of a node, after the node's name and a slash.
const (
	NodeNamespaces = "namespaces"
	OVSDB          = "ovsdb-server"
	VSwitchd       = "ovs-vswitchd"
	OVNController  = "ovn-controller"
	Containerd     = "containerd"
	Images         = "images"
	Kubelet        = "kubelet"
	Agent          = "agent"
)

// searchPath is the PATH of every process.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// List gives the units in the order in which they depend on each other.
func List(in Input) []supervise.Unit {
	units := controlPlane(in)
	for _, node := range in.Cluster.Nodes(in.Nodes) {
		units = append(units, nodeUnits(in, node)...)
	}
	return units
}

// DatapathType is Open vSwitch's name of the datapath.
func (in Input) DatapathType() string {
	if in.KernelDatapath {
		return "system"
	}
	return "netdev"
}

func (in Input) fabric() fabric.Config {
	return fabric.Config{Cluster: in.Cluster, MTU: in.Settings.FabricMTU, Userspace: !in.KernelDatapath, ExtraNICs: in.ExtraNICs}
}

// process fills in what processes have in common.
func process(u supervise.Unit) supervise.Unit {
	if u.Grace == 0 {
		u.Grace = 10 * time.Second
	}
	return u
}

// environment is the whole environment of a process; the user's own variables do not reach the cluster.
func (in Input) environment(temporary string, extra ...string) []string {
	return append([]string{
		"TMPDIR=" + temporary,
		"PATH=" + filepath.Dir(in.Programs.PatchbayKube) + ":" + searchPath,
		"HOME=/root",
		"LANG=C.UTF-8",
		layout.HomeVariable + "=" + in.Cluster.Home,
	}, extra...)
}

// withinFabric runs a function in the control plane's network namespace.
func (in Input) withinFabric(f func() error) error {
	return namespace.InNetwork(in.Cluster.FabricNamespace(), f)
}

// withinNode runs a function in a node's network and mount namespace.
func withinNode(node layout.Node) func(func() error) error {
	return func(f func() error) error {
		return namespace.OnThread(func() error {
			// The network first: its name lies in /run/netns, which the node's own file system does not show.
			if err := namespace.EnterNetwork(node.Namespace()); err != nil {
				return err
			}
			if err := namespace.EnterMounts(node.MountNamespace()); err != nil {
				return err
			}
			return f()
		})
	}
}

func unitName(node layout.Node, name string) string { return node.Name + "/" + name }

func flag(name string, value any) string { return fmt.Sprintf("--%s=%v", name, value) }
