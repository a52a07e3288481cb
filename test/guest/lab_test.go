package guest_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lab is a network namespace without a name, which ends with the test process whatever becomes of it. The test plays the
// network's servers there.
type lab struct {
	t     *testing.T
	work  chan func()
	taps  int
	close chan struct{}
}

// newLab makes the namespace and a thread that lives in it.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, work: make(chan func()), close: make(chan struct{})}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine and takes the namespace along
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for {
			select {
			case f := <-l.work:
				f()
			case <-l.close:
				return
			}
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make a network namespace (the test needs root): %v", err)
	}
	t.Cleanup(func() { close(l.close) })
	return l
}

// in runs a function inside the namespace; sockets that it opens stay there.
func (l *lab) in(f func() error) {
	l.t.Helper()
	done := make(chan error)
	l.work <- func() { done <- f() }
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}

// dial connects from the namespace.
func (l *lab) dial(network, address string, timeout time.Duration) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	l.work <- func() {
		c, err := net.DialTimeout(network, address, timeout)
		done <- result{c, err}
	}
	r := <-done
	return r.c, r.err
}

// tap makes a tap device with addresses and returns it opened for QEMU.
func (l *lab) tap(addresses ...string) (name string, file *os.File) {
	l.t.Helper()
	name = fmt.Sprintf("tap%d", l.taps)
	l.taps++
	l.in(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), name)
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0) //nolint:errcheck // saves a second
		for _, a := range addresses {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	})
	l.t.Cleanup(func() { file.Close() })
	return name, file
}

// serveDHCP4 answers every client on a device with the given options; the guest gets address.
func (l *lab) serveDHCP4(device string, server, address netip.Addr, options ...dhcpv4.Modifier) {
	l.t.Helper()
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		reply, err := dhcpv4.NewReplyFromRequest(m, append([]dhcpv4.Modifier{
			dhcpv4.WithServerIP(server.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server.AsSlice())),
			dhcpv4.WithYourIP(address.AsSlice()), dhcpv4.WithLeaseTime(3600),
		}, options...)...)
		if err != nil {
			return
		}
		reply.UpdateOption(dhcpv4.OptMessageType(map[dhcpv4.MessageType]dhcpv4.MessageType{
			dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck,
		}[m.MessageType()]))
		conn.WriteTo(reply.ToBytes(), peer) //nolint:errcheck // the client asks again
	}
	l.in(func() error {
		s, err := server4.NewServer(device, &net.UDPAddr{IP: net.IPv4zero, Port: 67}, handler)
		if err == nil {
			go s.Serve() //nolint:errcheck // ends when closed
			l.t.Cleanup(func() { s.Close() })
		}
		return err
	})
}

// serveDHCP6 gives one address to every client on a device.
func (l *lab) serveDHCP6(device string, address netip.Addr) {
	l.t.Helper()
	handler := func(conn net.PacketConn, peer net.Addr, m dhcpv6.DHCPv6) {
		message, err := m.GetInnerMessage()
		if err != nil || message.Options.OneIANA() == nil {
			return
		}
		id := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		modifiers := []dhcpv6.Modifier{
			dhcpv6.WithServerID(id), dhcpv6.WithIAID(message.Options.OneIANA().IaId),
			dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: address.AsSlice(), PreferredLifetime: time.Hour, ValidLifetime: time.Hour}),
			dhcpv6.WithDNS(net.ParseIP("fd77::53")),
		}
		var reply *dhcpv6.Message
		if message.MessageType == dhcpv6.MessageTypeSolicit {
			reply, err = dhcpv6.NewAdvertiseFromSolicit(message, modifiers...)
		} else {
			reply, err = dhcpv6.NewReplyFromMessage(message, modifiers...)
		}
		if err == nil {
			conn.WriteTo(reply.ToBytes(), peer) //nolint:errcheck // the client asks again
		}
	}
	l.in(func() error {
		s, err := server6.NewServer(device, &net.UDPAddr{IP: net.IPv6unspecified, Port: 547}, handler)
		if err == nil {
			go s.Serve() //nolint:errcheck // ends when closed
			l.t.Cleanup(func() { s.Close() })
		}
		return err
	})
}

// advertise plays a router that gives a prefix and tells to use DHCPv6; it answers every solicitation.
func (l *lab) advertise(device string, prefix netip.Prefix) {
	l.t.Helper()
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, RouterLifetime: 30 * time.Minute,
		Options: []ndp.Option{
			&ndp.PrefixInformation{PrefixLength: uint8(prefix.Bits()), OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: time.Hour, PreferredLifetime: time.Hour, Prefix: prefix.Addr()},
			&ndp.RecursiveDNSServer{Lifetime: time.Hour, Servers: []netip.Addr{netip.MustParseAddr("fd77::35")}},
			ndp.NewMTU(1400),
		},
	}
	var conn *ndp.Conn
	l.in(func() error {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		// Package net remembers which name had which index, for all namespaces of the process: a number cannot be mistaken.
		ifi.Name = strconv.Itoa(ifi.Index)
		conn, _, err = ndp.Listen(ifi, ndp.LinkLocal)
		if err != nil {
			return err
		}
		return conn.JoinGroup(netip.MustParseAddr("ff02::2"))
	})
	l.t.Cleanup(func() { conn.Close() })
	go func() {
		for {
			m, _, _, err := conn.ReadFrom()
			if err != nil {
				return
			}
			if _, ok := m.(*ndp.RouterSolicitation); ok {
				conn.WriteTo(ra, nil, netip.MustParseAddr("ff02::1")) //nolint:errcheck // the guest asks again
			}
		}
	}()
}

// options4 are all the options that a guest must heed.
func options4() []dhcpv4.Modifier {
	_, far, _ := net.ParseCIDR("192.168.99.0/24")
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	gateway := net.IPv4(10, 77, 0, 1)
	return []dhcpv4.Modifier{
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithRouter(net.IPv4(10, 77, 0, 99)), // must be ignored: option 121 is there
		dhcpv4.WithDNS(net.IPv4(10, 77, 0, 53)),
		dhcpv4.WithOption(dhcpv4.OptHostName("from-dhcp")),
		dhcpv4.WithOption(dhcpv4.OptDomainName("example.test")),
		dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{"tenant.svc.cluster.local", "cluster.local"}})),
		dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
			&dhcpv4.Route{Dest: far, Router: net.IPv4(10, 77, 0, 7)},
			&dhcpv4.Route{Dest: all, Router: gateway},
		)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78}), // 1400
	}
}

// within runs a check until it succeeds or the time is over. It waits between attempts for the guest, which cannot tell us.
func within(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s within %s: %v", what, limit, err)
		}
	}
}
