// Package migrationnet says where a node's migrations come to and leave from: the node's own address or, when the administrator
// names a network for migrations, an address in it. That network's CNI plugin gives the agent an interface in a network namespace of
// the agent's own, while it runs: no virtual machine is touched, and nothing is restarted. The package must not fall back by itself: a
// dedicated network keeps migrations away from others, and one that is missing is an error.
package migrationnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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
	Node       string
	Namespaces []string // of the definitions that may be named; the first that has one counts
	// Wanted names the definition; empty: none.
	Wanted func(context.Context) (string, error)
	// Definition reads a definition's configuration.
	Definition func(ctx context.Context, namespace, name string) (string, error)
	// NodeAddress is the node's own address.
	NodeAddress func(context.Context) (string, error)
	Delegates   Delegates
	Log         *slog.Logger
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
}

type attachment struct {
	definition, config string
	space              *os.File
	place              Place
}

// New makes a Network. Nothing is attached before the first migration.
func New(c Config) *Network { return &Network{Config: c} }

// Place says where migrations come to now, and attaches this node if it must.
func (n *Network) Place(ctx context.Context) (Place, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, err := n.Wanted(ctx)
	if err != nil {
		return Place{}, err
	}
	if name == "" {
		n.leave(ctx)
		address, err := n.NodeAddress(ctx)
		return Place{Address: address, Kind: virtv1.Pod, Inside: func(f func() error) error { return f() }}, err
	}
	namespace, config, err := n.define(ctx, name)
	if err != nil {
		return Place{}, err
	}
	if a := n.attached; a != nil && a.definition == name && a.config == config {
		return a.place, nil
	}
	n.leave(ctx)
	if n.attached, err = n.attach(ctx, namespace, name, config); err != nil {
		return Place{}, fmt.Errorf("node %s cannot join the migration network %s/%s: %w", n.Node, namespace, name, err)
	}
	n.Log.Info("joined the migration network", "definition", name, "address", n.attached.place.Address)
	return n.attached.place, nil
}

// define reads the definition that is wanted.
func (n *Network) define(ctx context.Context, name string) (namespace, config string, err error) {
	for _, namespace = range n.Namespaces {
		if config, err = n.Definition(ctx, namespace, name); err == nil {
			return namespace, config, nil
		}
		if !apierrors.IsNotFound(err) {
			return "", "", fmt.Errorf("read the migration network %s/%s: %w", namespace, name, err)
		}
	}
	return "", "", fmt.Errorf("there is no NetworkAttachmentDefinition %s in namespace %s; make it, or remove liveMigrationConfig.network from the HyperConverged object",
		name, n.Namespaces[0])
}

// leave gives the interface back. A migration under way on it fails, and its guest stays where it is.
func (n *Network) leave(ctx context.Context) {
	if n.attached == nil {
		return
	}
	if err := n.Delegates.Del(ctx, n.container()); err != nil {
		n.Log.Warn("cannot leave the migration network", "error", err)
	}
	n.attached.space.Close()
	n.attached = nil
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
	address := firstAddress(result)
	if address == "" {
		err = errors.Join(errors.New("migration0 present but doesn't have an IP; give the definition an ipam"), n.Delegates.Del(ctx, n.container()))
		return nil, err
	}
	return &attachment{definition: name, config: config, space: space, place: Place{
		Address: address, Kind: virtv1.Migration, Inside: func(f func() error) error { return netns.In(space, f) },
	}}, nil
}

func firstAddress(result *current.Result) string {
	for _, ip := range result.IPs {
		if a := ip.Address.IP; a.IsGlobalUnicast() && !a.Equal(net.IPv4zero) {
			return a.String()
		}
	}
	return ""
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
