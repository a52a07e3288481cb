package guestnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/netns"
)

// Server answers one guest. Its sockets keep the pod's network namespace alive until Serve returns or Close is called.
type Server struct {
	config Config
	zone   string // see numbered
	v4     *net.UDPConn
	v6     *net.UDPConn
	router *ndp.Conn
}

// Listen opens the sockets on the device in the network namespace at path. The device must be up and have its addresses.
func Listen(path string, c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Server{config: c}
	err := netns.Do(path, func() error {
		device, err := net.InterfaceByName(c.Device)
		if err != nil {
			return err
		}
		s.zone = strconv.Itoa(device.Index)
		if c.V4 != nil {
			if s.v4, err = listen4(c.Device); err != nil {
				return err
			}
		}
		if c.V6 != nil {
			if s.v6, err = listen6(device); err != nil {
				return err
			}
			if s.router, err = listenRouter(device); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("serve addresses on %s in network namespace %s: %w", c.Device, path, err)
	}
	return s, nil
}

// Close ends Serve.
func (s *Server) Close() {
	if s.v4 != nil {
		s.v4.Close()
	}
	if s.v6 != nil {
		s.v6.Close()
	}
	if s.router != nil {
		s.router.Close()
	}
}

// listen4 leaves out the UDP checksum of answers, as IPv4 allows. The kernel would leave it to the NIC, the guest's own NIC, and
// clients that read raw frames before they have an address would take the unfinished one for damage.
func listen4(device string) (*net.UDPConn, error) {
	conn, err := server4.NewIPv4UDPConn(device, nil)
	if err != nil {
		return nil, fmt.Errorf("DHCPv4: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var failure error
		err = raw.Control(func(fd uintptr) { failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		err = errors.Join(err, failure)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("DHCPv4: %w", err)
	}
	return conn, nil
}

func listen6(device *net.Interface) (*net.UDPConn, error) {
	conn, err := server6.NewIPv6UDPConn(device.Name, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort})
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	group := &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers}
	if err := ipv6.NewPacketConn(conn).JoinGroup(device, group); err != nil {
		conn.Close()
		return nil, fmt.Errorf("DHCPv6: join %s: %w", group.IP, err)
	}
	return conn, nil
}

func listenRouter(device *net.Interface) (*ndp.Conn, error) {
	conn, _, err := ndp.Listen(numbered(device), ndp.LinkLocal)
	if err != nil {
		return nil, fmt.Errorf("router advertisements: %w", err)
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	if err := errors.Join(conn.SetICMPFilter(&filter), conn.JoinGroup(allRouters)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("router advertisements: %w", err)
	}
	return conn, nil
}

var (
	allRouters = netip.MustParseAddr("ff02::2")
	allNodes   = netip.MustParseAddr("ff02::1")
)

// numbered names a device by its index. Package net remembers names of devices for the whole process, not per network namespace,
// so that the same name in another pod would lead to the wrong device; a number is taken as it is.
func numbered(device *net.Interface) *net.Interface {
	copied := *device
	copied.Name = strconv.Itoa(device.Index)
	return &copied
}

// Serve answers until ctx is done, then closes the sockets. It returns an error when a socket fails before that.
func (s *Server) Serve(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	defer context.AfterFunc(groupCtx, s.Close)()
	if s.v4 != nil {
		group.Go(s.serve4)
	}
	if s.v6 != nil {
		group.Go(s.serve6)
		group.Go(s.serveSolicitations)
		group.Go(func() error { return s.advertiseRegularly(groupCtx) })
	}
	err := group.Wait()
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("answer the guest on %s: %w", s.config.Device, err)
}

// maxPacket is the largest message that is read, in bytes.
const maxPacket = 1 << 16

func (s *Server) serve4() error {
	packet := make([]byte, maxPacket)
	for {
		n, _, err := s.v4.ReadFromUDPAddrPort(packet)
		if err != nil {
			return fmt.Errorf("DHCPv4: %w", err)
		}
		request, err := dhcpv4.FromBytes(packet[:n])
		if err != nil {
			continue
		}
		if reply := s.config.answer4(request); reply != nil {
			// A lost answer is asked for again, so no error of sending matters.
			_, _ = s.v4.WriteTo(reply.ToBytes(), destination4(request))
		}
	}
}

// destination4 broadcasts to a client without an address: it may not answer ARP yet.
func destination4(request *dhcpv4.DHCPv4) *net.UDPAddr {
	if ip := request.ClientIPAddr; ip != nil && !ip.IsUnspecified() && !request.IsBroadcast() {
		return &net.UDPAddr{IP: ip, Port: dhcpv4.ClientPort}
	}
	return &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
}

func (s *Server) serve6() error {
	packet := make([]byte, maxPacket)
	for {
		n, peer, err := s.v6.ReadFromUDPAddrPort(packet)
		if err != nil {
			return fmt.Errorf("DHCPv6: %w", err)
		}
		request, err := dhcpv6.MessageFromBytes(packet[:n])
		if err != nil {
			continue
		}
		if reply := s.config.answer6(request); reply != nil {
			to := netip.AddrPortFrom(peer.Addr().WithZone(s.zone), peer.Port())
			_, _ = s.v6.WriteToUDPAddrPort(reply.ToBytes(), to)
		}
	}
}
