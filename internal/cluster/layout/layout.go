// Package layout says where everything of a local cluster lies and what it is called: directories, sockets, network
// namespaces and addresses. All other packages ask it, so that a cluster can be found and removed without a running
// process. It computes names only; it must not touch the disk or the network.
package layout

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
)

// DefaultHome is the directory that holds one directory per cluster, unless the environment variable HomeVariable names another.
const (
	DefaultHome  = "/var/lib/patchbay"
	HomeVariable = "PATCHBAY_HOME"
)

// MaxNodes is bounded by the fabric's addresses: node N has 172.30.0.(10+N), and .254 is the host's with --expose.
const MaxNodes = 200

// Fixed ports of the control plane, on the fabric's address of the control plane.
const (
	APIPort        = 6443
	SouthboundPort = 6642
	ControllerPort = 9443
	AgentPort      = 8186
	EtcdPort       = 2379
)

// The fabric: the network that joins the nodes of one cluster. Every cluster has its own, so the ranges never clash.
var (
	Fabric4       = netip.MustParsePrefix("172.30.0.0/24")
	Fabric6       = netip.MustParsePrefix("fd00:172:30::/64")
	ControlPlane4 = netip.MustParseAddr("172.30.0.1")
	ControlPlane6 = netip.MustParseAddr("fd00:172:30::1")
)

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$`)

// Cluster is the place of one local cluster.
type Cluster struct {
	Home string // absolute
	Name string
}

// New checks the name and takes the home directory from the environment.
func New(name string) (Cluster, error) {
	if !namePattern.MatchString(name) {
		return Cluster{}, fmt.Errorf("%q cannot name a cluster; use 1 to 20 lower-case letters, digits and inner dashes", name)
	}
	home := os.Getenv(HomeVariable)
	if home == "" {
		home = DefaultHome
	}
	if !filepath.IsAbs(home) {
		return Cluster{}, fmt.Errorf("%s is %q; it must be an absolute path", HomeVariable, home)
	}
	return Cluster{Home: filepath.Clean(home), Name: name}, nil
}

// Dir is the cluster's state directory; everything the cluster writes lies below it.
func (c Cluster) Dir() string { return filepath.Join(c.Home, c.Name) }

// Path joins elements below the state directory.
func (c Cluster) Path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir()}, elem...)...)
}

// LockFile serialises up and down. It lies beside the state directory because down removes that.
func (c Cluster) LockFile() string { return filepath.Join(c.Home, "."+c.Name+".lock") }

func (c Cluster) ConfigFile() string   { return c.Path("cluster.json") }
func (c Cluster) SettingsFile() string { return c.Path("settings.json") }
func (c Cluster) Kubeconfig() string   { return c.Path("kubeconfig") }
func (c Cluster) Logs() string         { return c.Path("logs") }

// Run holds the state files of components, the supervisor's lock and the pinned mount namespaces.
func (c Cluster) Run() string { return c.Path("run") }

// Mounts is the directory whose files pin the nodes' mount namespaces.
func (c Cluster) Mounts() string { return c.Path("run", "mnt") }

// PKI is a path below the certificates of the control plane.
func (c Cluster) PKI(elem ...string) string { return c.Path(append([]string{"pki"}, elem...)...) }

// OVN is a path below the directory of the OVN databases.
func (c Cluster) OVN(elem ...string) string { return c.Path(append([]string{"ovn"}, elem...)...) }

// ComponentKubeconfig is the kubeconfig of a component of the control plane.
func (c Cluster) ComponentKubeconfig(component string) string {
	return c.Path("kubeconfigs", component)
}

// FabricNamespace names the network namespace of the control plane and the bridge that joins the nodes.
func (c Cluster) FabricNamespace() string { return "pb-" + c.Name + "-fabric" }

// CgroupParent is the cgroup, in every hierarchy, below which all pods of the cluster live.
func (c Cluster) CgroupParent() string { return "/patchbay-" + c.Name }

// Node is one node of a cluster.
type Node struct {
	Cluster Cluster
	Index   int // from 1
	Name    string
}

// Node gives the node with an index, counted from 1.
func (c Cluster) Node(index int) Node {
	return Node{Cluster: c, Index: index, Name: fmt.Sprintf("node-%d", index)}
}

// Nodes are the first count nodes.
func (c Cluster) Nodes(count int) []Node {
	nodes := make([]Node, 0, count)
	for i := 1; i <= count; i++ {
		nodes = append(nodes, c.Node(i))
	}
	return nodes
}

// Path joins elements below the node's directory.
func (n Node) Path(elem ...string) string {
	return n.Cluster.Path(append([]string{"nodes", n.Name}, elem...)...)
}

// Namespace names the node's network namespace.
func (n Node) Namespace() string { return "pb-" + n.Cluster.Name + "-" + n.Name }

// MountNamespace is the file that pins the node's mount namespace.
func (n Node) MountNamespace() string { return filepath.Join(n.Cluster.Mounts(), n.Name) }

// CgroupParent is the cgroup of the node's pods.
func (n Node) CgroupParent() string { return n.Cluster.CgroupParent() + "/" + n.Name }

// IPv4 is the node's address in the fabric.
func (n Node) IPv4() netip.Addr { return offset(ControlPlane4, n.Index) }

// IPv6 is the node's address in the fabric.
func (n Node) IPv6() netip.Addr { return offset(ControlPlane6, n.Index) }

// MAC is the node's hardware address in the fabric. It is fixed so that neighbours stay valid when a device is made anew.
func (n Node) MAC() net.HardwareAddr {
	v4 := n.IPv4().As4()
	return net.HardwareAddr{0x0a, 0x58, v4[0], v4[1], v4[2], v4[3]}
}

// FabricPort names the node's end of its cable in the fabric's namespace.
func (n Node) FabricPort() string { return fmt.Sprintf("node%d", n.Index) }

func (n Node) OVSSocket() string        { return n.Path("ovs", "db.sock") }
func (n Node) ContainerdSocket() string { return n.Path("containerd", "containerd.sock") }
func (n Node) KubeletRoot() string      { return n.Path("kubelet") }
func (n Node) CNISocket() string        { return n.Path("agent", "cni.sock") }

// offset is the address of node index: ten more than the index.
func offset(controlPlane netip.Addr, index int) netip.Addr {
	bytes := controlPlane.AsSlice()
	bytes[len(bytes)-1] = byte(10 + index)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}
