// Package nmstate carries out node network policies on the agent's node and reports the node's network: it reads and changes
// devices, addresses and routes of the network namespace that the agent runs in, and the node's Open vSwitch. What has to be
// done is computed by patchbay/internal/nmstate. A change that cuts the node off is taken back, also when the agent is killed
// in the middle.
package nmstate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/nmstate"
)

// Switch is what this package asks of the node's Open vSwitch; *ovs.Client is one.
type Switch interface {
	Bridges() []ovs.Bridge
	Settings() (externalIDs, otherConfig map[string]string, err error)
	AddBridge(ctx context.Context, name string) error
	DeleteBridge(ctx context.Context, name string) error
	AddPort(ctx context.Context, bridge, name string, internal bool) error
	DeletePort(ctx context.Context, bridge, name string) error
	SetBridge(ctx context.Context, name string, o ovs.BridgeOptions) error
	SetVLANs(ctx context.Context, name, mode string, tag *int, trunks []int) error
	SetInterface(ctx context.Context, name, mac string, mtu int) error
	ChangeSettings(ctx context.Context, externalIDs, otherConfig map[string]string) error
	Settle(ctx context.Context) error
}

// Node is the network of the namespace that the process runs in.
type Node struct {
	Name   string
	Switch Switch
	Guard  link.Guard
	// Management is the device of the node's own port in the overlay.
	Management string
	Log        *slog.Logger
}

// ErrRootNamespace says that the agent runs where the host's own network is.
var ErrRootNamespace = errors.New("this node's agent runs in the host's own network namespace, whose network Patchbay does not change; set manageHostNetwork in the cluster's settings to allow it")

// initialOnly is a setting that the kernel shows in its first network namespace only.
const initialOnly = "/proc/sys/net/core/netdev_max_backlog"

// InRootNamespace says whether the process runs in the host's own network namespace: the kernel's first, that of the first process
// (in a container it is another one, and may not be looked at), or that of the process that started this one.
func InRootNamespace() bool {
	if _, err := os.Stat(initialOnly); err == nil {
		return true
	}
	for _, pid := range []int{1, os.Getppid()} {
		if same, err := netns.Same(netns.Own, fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && same {
			return true
		}
	}
	return false
}

// owned are devices of pods, guests and the overlay: policies leave them alone.
func (n *Node) owned(name string) bool {
	return transient(name) || name == ovs.IntegrationBridge || (name != "" && name == n.Management)
}

// transient are devices that come and go with pods and guests; reports leave them out.
func transient(name string) bool {
	return pods(name, link.VethPrefix) || pods(name, link.TapPrefix) || strings.HasPrefix(name, "genev_sys_") || strings.HasPrefix(name, "ovs-system") ||
		strings.HasPrefix(name, "ovs-netdev")
}

// pods says whether link.Name made the name.
func pods(name, prefix string) bool {
	return len(name) == len(prefix)+12 && strings.HasPrefix(name, prefix) && strings.Trim(name[len(prefix):], "0123456789abcdef") == ""
}

// Host says what the node's kernel can do.
func (n *Node) Host() nmstate.Host {
	return nmstate.Host{VLANFiltering: vlanFiltering(), Owned: n.owned}
}

// vlanFiltering asks the kernel once, in a namespace that vanishes, so that no device of that name is ever seen.
var vlanFiltering = sync.OnceValue(func() bool {
	found := make(chan bool, 1)
	go func() { found <- tryFiltering() }()
	return <-found
})

func tryFiltering() (works bool) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if unix.Unshare(unix.CLONE_NEWNET) != nil {
		return false
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "probe"
	on := true
	return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes, VlanFiltering: &on}) == nil
}

func (n *Node) wrap(op nmstate.Op, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}
