// Package migrationnet says where a node's migrations come to and leave from: the node's own address or, when the administrator
// names a network for migrations, an address in it. That network's CNI plugin gives the agent an interface in a network namespace of
// the agent's own, while it runs: no virtual machine is touched, and nothing is restarted. Each node says on its Node object how it got on. The package must not fall back by itself: a
// dedicated network keeps migrations away from others, and one that is missing is an error.
package migrationnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"sync"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/netns"
)

// Interface is the name of the agent's interface.
const Interface = virtv1.MigrationInterfaceName

// Delegates runs CNI plugins; *delegate.Runner is one.
type Delegates interface {
	Add(context.Context, delegate.Attachment) (*current.Result, error)
	Del(ctx context.Context, container string, interfaces ...string) error
}

// Config is what a Network needs.
type Config struct {
	Node string
	// Wanted names the definition, empty for none, and the namespaces where it may be; the first that has one counts.
	Wanted func(context.Context) (name string, namespaces []string, err error)
	// Definition reads a definition's configuration.
	Definition func(ctx context.Context, namespace, name string) (string, error)
	// NodeAddress is the node's own address.
	NodeAddress func(context.Context) (string, error)
	Delegates   Delegates
	// Main are ranges that no address of the network may be in, because they lead elsewhere.
	Main []netip.Prefix
	Log  *slog.Logger
}

// Place is where migrations come to.
type Place struct {
	Address string
	Kind    virtv1.MigrationNetworkType
	// Inside runs a function where the address is.
	Inside func(func() error) error
}

// Network is one node's way to other nodes for migrations.
type Network struct {
	Config

	mu       sync.Mutex
	attached *attachment
	swept    bool // nothing is left of an agent that was killed
	// changed is told that what the node has to say is another thing now.
	changed func()
}

type attachment struct {
	definition, config string
	space              *os.File
	place              Place
}

// New makes a Network. Nothing is attached before the first migration.
func New(c Config) *Network { return &Network{Config: c, changed: func() {}} }

// Place says where migrations come to now, and attaches this node if it must.
func (n *Network) Place(ctx context.Context) (Place, error) {
	before := n.address()
	name, place, err := n.join(ctx)
	if before != n.address() {
		n.changed()
	}
	if name != "" || err != nil {
		return place, err
	}
	address, err := n.NodeAddress(ctx)
	return Place{Address: address, Kind: virtv1.Pod, Inside: func(f func() error) error { return f() }}, err
}

// address is the node's on the network that it has joined.
func (n *Network) address() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached == nil {
		return ""
	}
	return n.attached.place.Address
}

// join is on the network that is wanted, if one is.
func (n *Network) join(ctx context.Context) (name string, _ Place, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, namespaces, err := n.Wanted(ctx)
	if err != nil {
		return "", Place{}, fmt.Errorf("read which network migrations take: %w", err)
	}
	if name == "" {
		return "", Place{}, n.leave(ctx)
	}
	namespace, config, err := n.define(ctx, name, namespaces)
	if err == nil && namespace == "" {
		err = errors.Join(fmt.Errorf("there is no NetworkAttachmentDefinition %s in namespace %s; make it, or remove liveMigrationConfig.network from the HyperConverged object",
			name, namespaces[0]), n.leave(ctx))
	}
	if err != nil {
		return name, Place{}, err
	}
	if a := n.attached; a != nil && a.definition == namespace+"/"+name && a.config == config {
		return name, a.place, nil
	}
	if err := n.leave(ctx); err != nil {
		return name, Place{}, err
	}
	if n.attached, err = n.attach(ctx, namespace, name, config); err != nil {
		return name, Place{}, fmt.Errorf("node %s cannot join the migration network %s/%s: %w", n.Node, namespace, name, err)
	}
	n.Log.Info("joined the migration network", "definition", n.attached.definition, "address", n.attached.place.Address)
	return name, n.attached.place, nil
}

// define reads the definition that is wanted; namespace is empty when there is none.
func (n *Network) define(ctx context.Context, name string, namespaces []string) (namespace, config string, err error) {
	for _, namespace = range namespaces {
		if config, err = n.Definition(ctx, namespace, name); err == nil {
			return namespace, config, nil
		}
		if !apierrors.IsNotFound(err) {
			return "", "", fmt.Errorf("read the migration network %s/%s: %w", namespace, name, err)
		}
	}
	return "", "", nil
}

// leave gives the interface back, also one that an agent had who was killed. A migration under way on it fails, and its guest stays where
// it is.
func (n *Network) leave(ctx context.Context) error {
	if n.attached == nil && n.swept {
		return nil
	}
	if err := n.Delegates.Del(ctx, n.container()); err != nil {
		return fmt.Errorf("leave the migration network: %w", err)
	}
	n.swept = true
	if n.attached != nil {
		n.Log.Info("left the migration network", "definition", n.attached.definition)
		n.attached.space.Close()
		n.attached = nil
	}
	return nil
}

func (n *Network) container() string { return Container(n.Node) }

// Container is what plugins know a node's agent by, as if it were a pod's sandbox; it is the pod's UID, too. No pod can have it.
func Container(node string) string { return "patchbay-migration-" + node }

func (n *Network) attach(ctx context.Context, namespace, name, config string) (_ *attachment, err error) {
	space, err := newSpace()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			space.Close()
		}
	}()
	// What an agent that was killed had is removed by Add, with its address.
	result, err := n.Delegates.Add(ctx, delegate.Attachment{
		Network: namespace + "/" + name, Config: []byte(config), Namespace: namespace, Pod: "migration-" + n.Node, UID: n.container(),
		Container: n.container(), Netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), space.Fd()), Interface: Interface,
	})
	if err != nil {
		return nil, err
	}
	address, err := n.addressOf(ctx, result)
	if err != nil {
		err = errors.Join(err, n.Delegates.Del(ctx, n.container()))
		return nil, err
	}
	return &attachment{definition: namespace + "/" + name, config: config, space: space, place: Place{
		Address: address, Kind: virtv1.Migration, Inside: func(f func() error) error { return netns.In(space, f) },
	}}, nil
}

// addressOf is the address that the plugin gave. One that leads elsewhere would send migrations there.
func (n *Network) addressOf(ctx context.Context, result *current.Result) (string, error) {
	own, err := n.NodeAddress(ctx)
	if err != nil {
		return "", err
	}
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); !ok || !a.IsGlobalUnicast() {
			continue
		}
		ones, _ := ip.Address.Mask.Size()
		subnet := netip.PrefixFrom(a, ones).Masked()
		for _, main := range n.Main {
			if main.Overlaps(subnet) {
				return "", fmt.Errorf("its range %s overlaps %s, which the cluster's own network uses; choose another range", subnet, main)
			}
		}
		if node, err := netip.ParseAddr(own); err == nil && subnet.Contains(node) {
			return "", fmt.Errorf("its range %s holds the node's own address %s; choose another range", subnet, node)
		}
		return a.String(), nil
	}
	return "", errors.New("migration0 present but doesn't have an IP; give the definition an ipam")
}

// newSpace makes a network namespace that lives as long as the file: with the agent it goes, and leaves nothing behind.
func newSpace() (*os.File, error) {
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, fmt.Errorf("make a network namespace for migrations: %w", err)}
			return
		}
		file, err := os.Open(netns.Own)
		done <- made{file, err}
	}()
	m := <-done
	return m.file, m.err
}
