package nic

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/guest/guestd/netconfig"
)

// worker owns one interface from plugging in to plugging out.
type worker struct {
	link     netlink.Link
	config   netconfig.NIC
	resolver *Resolver
	hostname func(string)
	ready    func() // told when there is an address
	ctx      context.Context
	cancel   context.CancelFunc
	cable    chan struct{} // carrier came back
	managed  chan struct{} // a router says: DHCPv6

	mu    sync.Mutex
	state State
	dns   map[string]source // by where it comes from: static, dhcp4, dhcp6, router
}

func newWorker(ctx context.Context, link netlink.Link, config netconfig.NIC, m *Manager) *worker {
	attrs := link.Attrs()
	w := &worker{
		link: link, config: config, resolver: m.resolver, hostname: m.hostname, ready: m.ready,
		cable: make(chan struct{}, 1), managed: make(chan struct{}, 1),
		state: State{Name: attrs.Name, MAC: attrs.HardwareAddr.String(), Carrier: attrs.RawFlags&lowerUp != 0},
		dns:   map[string]source{},
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

func (w *worker) run() {
	if err := w.configure(); err != nil {
		w.failed("configure", err)
	}
	var running sync.WaitGroup
	if w.config.DHCP4 {
		running.Go(w.runDHCP4)
	}
	if w.config.DHCP6 != netconfig.No {
		running.Go(w.runDHCP6)
	}
	running.Wait()
}

// configure does everything that needs no answer from the network.
func (w *worker) configure() error {
	if err := w.rename(); err != nil {
		return err
	}
	name := w.name()
	w.sysctl("accept_ra", map[bool]string{true: "0", false: "1"}[w.config.AcceptRA == netconfig.No])
	w.sysctl("router_solicitation_delay", "0")
	w.sysctl("ra_defrtr_metric", fmt.Sprint(1024+w.metric())) // of two routers the first interface's wins
	if w.config.MTU > 0 {
		if err := netlink.LinkSetMTU(w.link, w.config.MTU); err != nil {
			return fmt.Errorf("MTU %d on %s: %w", w.config.MTU, name, err)
		}
	}
	if err := netlink.LinkSetUp(w.link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	for _, a := range w.config.Addresses {
		if err := w.address(a, 0); err != nil {
			return err
		}
	}
	for _, r := range w.config.Routes {
		if err := w.route(r); err != nil {
			return err
		}
	}
	w.setDNS("static", w.config.DNS, w.config.Search)
	return nil
}

func (w *worker) rename() error {
	if w.config.SetName == "" || w.config.SetName == w.name() {
		return nil
	}
	if err := netlink.LinkSetDown(w.link); err != nil {
		return err
	}
	if err := netlink.LinkSetName(w.link, w.config.SetName); err != nil {
		return fmt.Errorf("rename %s to %s: %w", w.name(), w.config.SetName, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Name = w.config.SetName
	return nil
}

func (w *worker) name() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Name
}

// metric of routes that come from the network: interfaces in the order of their position, as other guests do it, so that the first one carries
// the default route.
func (w *worker) metric() int {
	if w.config.Metric > 0 {
		return w.config.Metric
	}
	return 100 + w.link.Attrs().Index
}

// address adds an address; seconds is how long it is valid, 0 for ever.
func (w *worker) address(p netip.Prefix, seconds int) error {
	a := &netlink.Addr{IPNet: ipNet(p), ValidLft: seconds, PreferedLft: seconds}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // the seed or the server vouches for it; waiting a second for a conflict helps nobody
	}
	if err := netlink.AddrReplace(w.link, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, w.name(), err)
	}
	w.ready()
	return nil
}

func (w *worker) route(r netconfig.Route) error {
	out := &netlink.Route{LinkIndex: w.link.Attrs().Index, Dst: ipNet(r.To), Priority: r.Metric}
	if r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
	} else if r.To.Addr().Is4() {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.OnLink {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := netlink.RouteReplace(out); err != nil {
		return fmt.Errorf("route to %s via %s on %s: %w", r.To, r.Via, w.name(), err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctl sets a value that some kernels lack; then the default must do.
func (w *worker) sysctl(key, value string) {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+w.name()+"/"+key, []byte(value), 0); err != nil {
		slog.Warn("IPv6 setting", "interface", w.name(), "error", err)
	}
}

// carrier notes whether the other side is there, and wakes DHCP when it came back: the network behind may be another one.
func (w *worker) carrier(up bool) {
	w.mu.Lock()
	back := up && !w.state.Carrier
	w.state.Carrier = up
	w.mu.Unlock()
	if back {
		wake(w.cable)
	}
}

func (w *worker) advertised(a Advertisement) {
	w.mu.Lock()
	w.state.Router = &a
	w.mu.Unlock()
	w.setDNS("router", a.DNS, a.Search)
	if a.Managed || a.Other {
		wake(w.managed)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// setDNS replaces the name servers from one source and hands all of the interface to the resolver.
func (w *worker) setDNS(from string, servers []netip.Addr, search []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dns[from] = source{servers, search}
	var all source
	for _, s := range []string{"static", "dhcp4", "dhcp6", "router"} {
		all.servers = append(all.servers, w.dns[s].servers...)
		all.search = append(all.search, w.dns[s].search...)
	}
	w.resolver.Set(w.state.Name, all.servers, all.search)
}

func (w *worker) failed(what string, err error) {
	if w.ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Error = what + ": " + err.Error()
	slog.Warn("interface", "name", w.state.Name, "what", what, "error", err)
}

func (w *worker) snapshot() State {
	w.mu.Lock()
	out := w.state
	w.mu.Unlock()
	if link, err := netlink.LinkByIndex(w.link.Attrs().Index); err == nil {
		seen := observe(link)
		out.MTU, out.Addresses = seen.MTU, seen.Addresses
	}
	return out
}
