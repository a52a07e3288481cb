package nic

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// Advertisement is what a router says to a link and the kernel does not act upon.
type Advertisement struct {
	Router  netip.Addr   `json:"router"`
	Managed bool         `json:"managed"` // get an address by DHCPv6
	Other   bool         `json:"other"`   // get the rest by DHCPv6
	MTU     int          `json:"mtu,omitempty"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Search  []string     `json:"search,omitempty"`
}

// routerListener receives the router advertisements of all interfaces on one socket. The kernel asks routers and
// configures addresses; this only listens.
type routerListener struct{ conn *ipv6.PacketConn }

func listenForRouters() (*routerListener, error) {
	c, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("listen for IPv6 routers: %w", err)
	}
	conn := ipv6.NewPacketConn(c)
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := conn.SetICMPFilter(&only); err != nil {
		return nil, fmt.Errorf("listen for IPv6 routers: %w", err)
	}
	if err := conn.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true); err != nil {
		return nil, fmt.Errorf("listen for IPv6 routers: %w", err)
	}
	return &routerListener{conn}, nil
}

func (l *routerListener) close() { l.conn.Close() }

// run ends when the listener is closed.
func (l *routerListener) run(heard func(index int, a Advertisement)) {
	buffer := make([]byte, 9000)
	for {
		n, control, from, err := l.conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		if control == nil || control.HopLimit != 255 { // RFC 4861 6.1.2: not from this link
			continue
		}
		message, err := ndp.ParseMessage(buffer[:n])
		if err != nil {
			slog.Warn("router advertisement", "from", from, "error", err)
			continue
		}
		if ra, ok := message.(*ndp.RouterAdvertisement); ok {
			heard(control.IfIndex, advertisement(from, ra))
		}
	}
}

func advertisement(from net.Addr, ra *ndp.RouterAdvertisement) Advertisement {
	out := Advertisement{Managed: ra.ManagedConfiguration, Other: ra.OtherConfiguration}
	if ip, ok := from.(*net.IPAddr); ok {
		out.Router, _ = netip.AddrFromSlice(ip.IP)
	}
	for _, option := range ra.Options {
		switch o := option.(type) {
		case *ndp.MTU:
			out.MTU = int(o.MTU)
		case *ndp.RecursiveDNSServer:
			out.DNS = append(out.DNS, o.Servers...)
		case *ndp.DNSSearchList:
			out.Search = append(out.Search, o.DomainNames...)
		}
	}
	return out
}
