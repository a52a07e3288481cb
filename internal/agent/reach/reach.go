// Package reach connects the agent to guests on tenants' networks, for the console's ssh and port-forward. A tenant's addresses may be
// those of the node or of another tenant, so that the agent has a network namespace of its own for each network, with one port on the
// network's switch. Nothing else is in there, and nobody can enter it from the network. It must not know who asks.
package reach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// Network is where the agent has a port.
type Network struct {
	Name      string
	Addresses []netip.Prefix // the agent's own; all nodes have the same
	MTU       int
}

// Ports is what the package asks of Open vSwitch; *ovs.Client is one.
type Ports interface {
	Plug(context.Context, ovs.Port) error
	Unplug(ctx context.Context, names ...string) error
	Owned(prefix string) map[string]string
}

// Config is what a Reach needs.
type Config struct {
	Ports Ports
	Guard link.Guard
	// Find says where a network is, from the key of an attachment to it.
	Find func(ctx context.Context, attachment string) (Network, error)
	Log  *slog.Logger
}

// Reach holds the namespaces. They end with the process; New takes away what an earlier one has left in Open vSwitch.
type Reach struct {
	Config

	mu       sync.Mutex
	networks map[string]*door
}

// door is the way into one network.
type door struct {
	mu    sync.Mutex
	space *os.File // nil until it is made
}

// ownerPrefix begins the owners of the package's ports.
const ownerPrefix = "reach/"

// New makes a Reach.
func New(c Config) *Reach { return &Reach{Config: c, networks: map[string]*door{}} }

// Recover unplugs what an agent before has left: its namespaces, and the devices in them, went with it.
func (r *Reach) Recover(ctx context.Context) error {
	var names []string
	for name := range r.Ports.Owned(ownerPrefix) {
		names = append(names, name)
	}
	return r.Ports.Unplug(ctx, names...)
}

// Close removes the namespaces; the devices in them go along.
func (r *Reach) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, d := range r.networks {
		d.mu.Lock()
		if d.space != nil {
			errs = append(errs, d.space.Close())
			d.space = nil
		}
		d.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Times of one Dial. The port takes a moment to work after it was made, and its first packets are lost.
const (
	dialLimit = 10 * time.Second
	attempt   = 2 * time.Second
)

// Dial connects to an address of the network that the attachment belongs to.
func (r *Reach) Dial(ctx context.Context, name, attachment, proto string, to netip.AddrPort) (net.Conn, error) {
	d := r.door(name)
	space, err := r.enter(ctx, d, attachment)
	if err != nil {
		return nil, fmt.Errorf("reach network %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	for {
		var conn net.Conn
		err := netns.In(space, func() (err error) {
			// No second attempt in parallel: it would run on a thread outside the namespace.
			dialer := net.Dialer{FallbackDelay: -1, Timeout: attempt}
			conn, err = dialer.DialContext(ctx, proto, to.String())
			return err
		})
		var slow net.Error
		if err == nil || ctx.Err() != nil || !errors.As(err, &slow) || !slow.Timeout() {
			return conn, err
		}
	}
}

func (r *Reach) door(network string) *door {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.networks[network]
	if d == nil {
		d = &door{}
		r.networks[network] = d
	}
	return d
}

// enter makes the namespace with the port in it, once.
func (r *Reach) enter(ctx context.Context, d *door, attachment string) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.space != nil {
		return d.space, nil
	}
	network, err := r.Find(ctx, attachment)
	if err != nil {
		return nil, err
	}
	if len(network.Addresses) == 0 {
		return nil, errors.New("nodes have no address on it; connect from a pod or a VM on the network")
	}
	space, err := netns.New()
	if err != nil {
		return nil, err
	}
	v := link.Veth{
		Host: link.Name(link.VethPrefix, "reach", network.Name), Netns: netns.Path(space), Name: "access", MAC: podnetworks.MAC(network.Addresses[0].Addr()),
		MTU: network.MTU, IPs: network.Addresses, Alias: "agent on network " + network.Name,
	}
	err = link.Connect(ctx, r.Guard, v)
	if err == nil {
		err = r.Ports.Plug(ctx, ovs.Port{Name: v.Host, Logical: topology.AccessPort(network.Name), Owner: ownerPrefix + network.Name})
	}
	if err != nil {
		space.Close()
		return nil, errors.Join(err, link.Remove(v.Host))
	}
	r.Log.Info("the agent has a port on a network", "network", network.Name, "device", v.Host)
	d.space = space
	return space, nil
}
