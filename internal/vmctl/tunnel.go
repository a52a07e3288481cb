package vmctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"patchbay/internal/guestshell"
)

// Console opens a machine's serial console, Screen its VNC server.
func (c *Client) Console(ctx context.Context, m Name) (io.ReadWriteCloser, error) {
	return c.stream(ctx, m, "console")
}

// Screen opens a machine's VNC server.
func (c *Client) Screen(ctx context.Context, m Name) (io.ReadWriteCloser, error) {
	return c.stream(ctx, m, "vnc")
}

// Dial connects to a port of the guest; protocol is tcp or udp. With udp each Write and Read is a datagram.
func (c *Client) Dial(ctx context.Context, m Name, protocol string, port uint16) (io.ReadWriteCloser, error) {
	return c.stream(ctx, m, fmt.Sprintf("portforward/%d/%s", port, protocol))
}

func (c *Client) stream(ctx context.Context, m Name, verb string) (io.ReadWriteCloser, error) {
	path := fmt.Sprintf("%s/namespaces/%s/%s/%s/%s", verbsPath, m.Namespace, instances, m.Name, verb)
	return guestshell.DialPath(ctx, c.config, path)
}

// Join copies both ways until either side ends or ctx does.
func Join(ctx context.Context, a, b io.ReadWriteCloser) error {
	var once sync.Once
	var first error
	end := func(err error) {
		once.Do(func() {
			if !errors.Is(err, net.ErrClosed) {
				first = err
			}
			a.Close()
			b.Close()
		})
	}
	stop := context.AfterFunc(ctx, func() { end(nil) })
	defer stop()
	var copies sync.WaitGroup
	for _, pair := range [][2]io.ReadWriteCloser{{a, b}, {b, a}} {
		copies.Go(func() {
			_, err := io.Copy(pair[0], pair[1])
			end(err)
		})
	}
	copies.Wait()
	return first
}

// Forwarding is a port of this host that leads to one of the guest.
type Forwarding struct {
	Protocol string // tcp or udp
	Local    uint16 // 0: any
	Remote   uint16
}

// ParseForwarding reads [PROTOCOL/]LOCAL[:REMOTE].
func ParseForwarding(text string) (Forwarding, error) {
	f := Forwarding{Protocol: "tcp"}
	ports := text
	if protocol, rest, ok := strings.Cut(text, "/"); ok {
		f.Protocol, ports = strings.ToLower(protocol), rest
	}
	if f.Protocol != "tcp" && f.Protocol != "udp" {
		return f, fmt.Errorf("%q: protocol %q cannot be forwarded; use tcp or udp", text, f.Protocol)
	}
	local, remote, ok := strings.Cut(ports, ":")
	if !ok {
		remote = local
	}
	var err error
	if f.Local, err = port(local, true); err == nil {
		f.Remote, err = port(remote, false)
	}
	if err != nil {
		return f, fmt.Errorf("%q: %w; write [tcp/|udp/]LOCAL[:REMOTE], such as 8080:80", text, err)
	}
	return f, nil
}

func port(text string, zero bool) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 && !zero {
		return 0, fmt.Errorf("%q is not a port", text)
	}
	return uint16(n), nil
}

// Forward listens on an address of this host until ctx ends. listening is called with the local port once it does; failed with what
// goes wrong with single connections, which ends none of the others.
func (c *Client) Forward(ctx context.Context, m Name, f Forwarding, address string, listening func(port int), failed func(error)) error {
	local := net.JoinHostPort(address, strconv.Itoa(int(f.Local)))
	if f.Protocol == "udp" {
		return c.forwardDatagrams(ctx, m, f, local, listening, failed)
	}
	return serve(ctx, local, func() (io.ReadWriteCloser, error) { return c.Dial(ctx, m, f.Protocol, f.Remote) }, listening, failed)
}

// ForwardAll is Forward for several at a time; the first that cannot listen ends all.
func (c *Client) ForwardAll(ctx context.Context, m Name, all []Forwarding, address string, listening func(Forwarding, int), failed func(error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for _, f := range all {
		running.Go(func() {
			if err := c.Forward(ctx, m, f, address, func(port int) { listening(f, port) }, failed); err != nil {
				cancel(err)
			}
		})
	}
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// ServeScreen listens for VNC viewers until ctx ends. One sees the screen at a time.
func (c *Client) ServeScreen(ctx context.Context, m Name, address string, port uint16, listening func(int), failed func(error)) error {
	local := net.JoinHostPort(address, strconv.Itoa(int(port)))
	return serve(ctx, local, func() (io.ReadWriteCloser, error) { return c.Screen(ctx, m) }, listening, failed)
}

// serve joins each connection to a local address with a stream of its own.
func serve(ctx context.Context, local string, dial func() (io.ReadWriteCloser, error), listening func(int), failed func(error)) error {
	listener, err := net.Listen("tcp", local)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", local, err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	listening(listener.Addr().(*net.TCPAddr).Port)
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", local, err)
		}
		serving.Go(func() {
			defer conn.Close()
			tunnel, err := dial()
			if err != nil {
				failed(err)
				return
			}
			if err := Join(ctx, conn, tunnel); err != nil {
				failed(err)
			}
		})
	}
}

// maxDatagram is the largest datagram, in bytes.
const maxDatagram = 1 << 16

// forwardDatagrams keeps a tunnel per sender.
func (c *Client) forwardDatagrams(ctx context.Context, m Name, f Forwarding, local string, listening func(int), failed func(error)) error {
	socket, err := net.ListenPacket("udp", local)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", local, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	listening(socket.LocalAddr().(*net.UDPAddr).Port)
	senders := &senders{tunnels: map[string]io.ReadWriteCloser{}}
	defer senders.close()
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", local, err)
		}
		tunnel, fresh, err := senders.get(from.String(), func() (io.ReadWriteCloser, error) { return c.Dial(ctx, m, f.Protocol, f.Remote) })
		if err != nil {
			failed(err)
			continue
		}
		if fresh {
			senders.running.Go(func() {
				defer senders.drop(from.String())
				answer(socket, from, tunnel)
			})
		}
		if _, err := tunnel.Write(buffer[:n]); err != nil {
			senders.drop(from.String())
		}
	}
}

// answer sends what comes out of a tunnel to its sender.
func answer(socket net.PacketConn, to net.Addr, tunnel io.Reader) {
	buffer := make([]byte, maxDatagram)
	for {
		n, err := tunnel.Read(buffer)
		if err != nil {
			return
		}
		if _, err := socket.WriteTo(buffer[:n], to); err != nil {
			return
		}
	}
}

// senders are the tunnels of those who send datagrams.
type senders struct {
	mu      sync.Mutex
	tunnels map[string]io.ReadWriteCloser
	running sync.WaitGroup
}

func (s *senders) get(from string, dial func() (io.ReadWriteCloser, error)) (tunnel io.ReadWriteCloser, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tunnel := s.tunnels[from]; tunnel != nil {
		return tunnel, false, nil
	}
	if tunnel, err = dial(); err == nil {
		s.tunnels[from] = tunnel
	}
	return tunnel, true, err
}

func (s *senders) drop(from string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tunnel := s.tunnels[from]; tunnel != nil {
		tunnel.Close()
		delete(s.tunnels, from)
	}
}

func (s *senders) close() {
	s.mu.Lock()
	for _, tunnel := range s.tunnels {
		tunnel.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}
