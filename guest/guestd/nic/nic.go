// Package nic brings up the guest's interfaces and keeps them up: static addresses, DHCPv4, DHCPv6 when a router asks for
// it, and whatever is plugged in or out later. The kernel does stateless IPv6 by itself; the package adds what it leaves to user space.
package nic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"patchbay/guest/guestd/netconfig"
)

// Manager runs one worker for each interface.
type Manager struct {
	config   netconfig.Config
	hostname func(string) // told the name that a DHCP server gives
	resolver *Resolver
	online   chan struct{} // closed when an interface got an address
	first    sync.Once

	mu      sync.Mutex
	workers map[int]*worker // by interface index
}

// NewManager returns a manager that carries out a seed's configuration.
func NewManager(config netconfig.Config, resolver *Resolver, hostname func(string)) *Manager {
	resolver.Set("", config.DNS, config.Search)
	return &Manager{config: config, hostname: hostname, resolver: resolver, online: make(chan struct{}), workers: map[int]*worker{}}
}

// Run brings up all interfaces and follows plugging and unplugging until the context ends.
func (m *Manager) Run(ctx context.Context) error {
	routers, err := listenForRouters()
	if err != nil {
		return err
	}
	defer routers.close()
	go routers.run(m.advertised)
	if err := m.rename(); err != nil {
		slog.Error("names of the seed", "error", err)
	}
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	if err := m.makeVLANs(); err != nil {
		slog.Error("VLANs of the seed", "error", err)
	}
	for update := range links {
		m.linkChanged(ctx, update)
	}
	return ctx.Err()
}

// Online is closed as soon as an interface has an address that the seed or a server gave it, or when there is no interface.
func (m *Manager) Online() <-chan struct{} { return m.online }

func (m *Manager) ready() { m.first.Do(func() { close(m.online) }) }

// rename gives the interfaces that are there at boot the names that the seed wants. Names may be swapped, so all that
// change first get one that nobody else has.
func (m *Manager) rename() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().EncapType == "ether" }) {
		m.ready() // nothing to wait for
	}
	wanted := map[netlink.Link]string{}
	for _, l := range links {
		name := m.config.Find(l.Attrs().Name, l.Attrs().HardwareAddr).SetName
		if l.Attrs().EncapType != "ether" || name == "" || name == l.Attrs().Name {
			continue
		}
		wanted[l] = name
		if err := errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, fmt.Sprintf("renamed%d", l.Attrs().Index))); err != nil {
			return fmt.Errorf("rename %s: %w", l.Attrs().Name, err)
		}
	}
	for l, name := range wanted {
		if err := netlink.LinkSetName(l, name); err != nil {
			return fmt.Errorf("rename %s to %s: %w", l.Attrs().Name, name, err)
		}
	}
	return nil
}

// linkChanged starts a worker for a new interface, ends that of one that left, and tells of a cable plugged in.
func (m *Manager) linkChanged(ctx context.Context, u netlink.LinkUpdate) {
	index, attrs := u.Link.Attrs().Index, u.Link.Attrs()
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[index]
	const rtmDelLink = 17
	switch {
	case u.Header.Type == rtmDelLink:
		if w != nil {
			w.cancel()
			m.resolver.Set(w.state.Name, nil, nil)
			delete(m.workers, index)
		}
	case attrs.Flags&net.FlagLoopback != 0 || attrs.EncapType != "ether":
	case w == nil:
		m.workers[index] = m.start(ctx, u.Link)
	default:
		w.carrier(attrs.RawFlags&lowerUp != 0)
	}
}

const lowerUp = 1 << 16 // IFF_LOWER_UP: the other side is there

func (m *Manager) start(ctx context.Context, link netlink.Link) *worker {
	attrs := link.Attrs()
	config := m.config.Find(attrs.Name, attrs.HardwareAddr)
	if link.Type() == "vlan" {
		config = m.vlan(attrs.Name)
	}
	w := newWorker(ctx, link, config, m)
	go w.run()
	return w
}

func (m *Manager) vlan(name string) netconfig.NIC {
	for _, n := range m.config.NICs {
		if n.VLAN != nil && n.Name == name {
			return n
		}
	}
	return netconfig.NIC{} // made by someone in the guest: theirs
}

func (m *Manager) makeVLANs() error {
	for _, n := range m.config.NICs {
		if n.VLAN == nil {
			continue
		}
		parent, err := netlink.LinkByName(n.VLAN.Link)
		if err != nil {
			return fmt.Errorf("VLAN %s on %s: %w", n.Name, n.VLAN.Link, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = n.Name, parent.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: n.VLAN.ID}); err != nil {
			return fmt.Errorf("VLAN %s on %s: %w", n.Name, n.VLAN.Link, err)
		}
	}
	return nil
}

// advertised hands a router's advertisement to the interface that it came in on.
func (m *Manager) advertised(index int, a Advertisement) {
	m.mu.Lock()
	w := m.workers[index]
	m.mu.Unlock()
	if w != nil {
		w.advertised(a)
	}
}

// States describes every interface, by index.
func (m *Manager) States() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []State
	for _, index := range slices.Sorted(maps.Keys(m.workers)) {
		out = append(out, m.workers[index].snapshot())
	}
	return out
}

// State is what became of one interface.
type State struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"`
	MTU       int            `json:"mtu"`
	Addresses []netip.Prefix `json:"addresses"`
	Carrier   bool           `json:"carrier"`
	DHCP4     *Answer        `json:"dhcp4,omitempty"`
	DHCP6     *Answer        `json:"dhcp6,omitempty"`
	Router    *Advertisement `json:"router,omitempty"`
	Error     string         `json:"error,omitempty"` // the last thing that went wrong
}

// Observe describes the interfaces that somebody else brought up.
func Observe() []State {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	var out []State
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback == 0 {
			out = append(out, observe(l))
		}
	}
	return out
}

// observe reads what the kernel knows.
func observe(link netlink.Link) State {
	attrs := link.Attrs()
	out := State{Name: attrs.Name, MAC: attrs.HardwareAddr.String(), MTU: attrs.MTU, Carrier: attrs.RawFlags&lowerUp != 0}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return out
	}
	for _, a := range addresses {
		ip, _ := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		out.Addresses = append(out.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return out
}

// Answer is what a DHCP server said: every option, decoded as far as the library knows it.
type Answer struct {
	Address netip.Prefix      `json:"address"`
	Server  string            `json:"server"`
	Options map[string]string `json:"options"` // by the option's number
}
