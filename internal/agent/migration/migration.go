// Package migration carries a live migration between two nodes' agents: mutual TLS connections that belong to one migration, the
// words that the agents exchange on one of them, and the copying of QEMU's streams over the others. The package must not know
// what a virtual machine is, nor decide anything: who may run the guest is settled by package vmstate.
package migration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Channel is what a connection is for. The numbers are those of status.migrationState.targetDirectMigrationNodePorts.
type Channel int

const (
	Control Channel = 0     // the agents' own words
	Memory  Channel = 49152 // QEMU's migration stream
	Block   Channel = 49153 // NBD: disks that are not shared
)

// AgentPrefix precedes a node's name in the common name of its agent's certificate.
const AgentPrefix = "patchbay:agent:"

// Times of connections.
const (
	dialLimit      = 10 * time.Second
	handshakeLimit = 10 * time.Second
	// keepAlive finds a peer that is cut off: after about keepAlive x (1 + probes) the connection breaks.
	keepAlive = 3 * time.Second
	probes    = 4
)

// maxWaiting bounds the connections of a channel that nobody has taken yet.
const maxWaiting = 64

// Identity is an agent's certificate: a directory with tls.crt, tls.key and ca.crt, read for every connection.
type Identity struct {
	Dir string
	// Plain leaves TLS out, because the administrator said disableTLS. Peers are not checked then.
	Plain bool
}

func (i Identity) config(peer string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(i.Dir, "tls.crt"), filepath.Join(i.Dir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("load the agent's certificate: %w", err)
	}
	authority, err := os.ReadFile(filepath.Join(i.Dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("load the agents' certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(i.Dir, "ca.crt"))
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAnyClientCert,
		// A node is known by its name: its certificate does not hold the address that it has in the migration network.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return verify(s, roots, AgentPrefix+peer) },
	}, nil
}

// verify does what InsecureSkipVerify leaves out: the chain, and the one name that is expected at the other end.
func verify(s tls.ConnectionState, roots *x509.CertPool, name string) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the other side shows no certificate")
	}
	leaf := s.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return err
	}
	if leaf.Subject.CommonName != name {
		return fmt.Errorf("the other side is %q, this migration is with %q", leaf.Subject.CommonName, name)
	}
	return nil
}

// Listener takes the connections of one migration. Only the agent of its source gets through.
type Listener struct {
	ports     map[Channel]int
	listeners []net.Listener
	taken     map[Channel]chan net.Conn
	running   sync.WaitGroup
	closed    chan struct{}
}

// Inside runs a function where the addresses of migrations are; a network namespace, perhaps.
type Inside func(func() error) error

// Listen opens a port for each channel on the address.
func Listen(where Inside, address string, id Identity, source string, channels ...Channel) (*Listener, error) {
	l := &Listener{ports: map[Channel]int{}, taken: map[Channel]chan net.Conn{}, closed: make(chan struct{})}
	for _, c := range channels {
		var listener net.Listener
		err := where(func() (err error) {
			listener, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
			return err
		})
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("listen for a migration on %s: %w", address, err)
		}
		l.listeners = append(l.listeners, listener)
		l.ports[c] = listener.Addr().(*net.TCPAddr).Port
		l.taken[c] = make(chan net.Conn, maxWaiting)
	}
	for n, c := range channels {
		l.running.Go(func() { l.serve(l.listeners[n], c, id, source) })
	}
	return l, nil
}

// Ports are the ports as the API has them: the port as a word, to the channel.
func (l *Listener) Ports() map[string]int {
	ports := map[string]int{}
	for c, port := range l.ports {
		ports[strconv.Itoa(port)] = int(c)
	}
	return ports
}

func (l *Listener) serve(listener net.Listener, c Channel, id Identity, source string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.admit(conn, c, id, source) })
	}
}

// admit checks who has come and hands the connection on.
func (l *Listener) admit(conn net.Conn, c Channel, id Identity, source string) {
	patient(conn)
	endure(conn, c)
	if !id.Plain {
		config, err := id.config(source)
		if err != nil {
			conn.Close()
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), handshakeLimit)
		defer cancel()
		secure := tls.Server(conn, config)
		if secure.HandshakeContext(ctx) != nil {
			conn.Close()
			return
		}
		conn = secure
	}
	select {
	case l.taken[c] <- conn:
	case <-l.closed:
		conn.Close()
	default:
		conn.Close() // nobody means that well
	}
}

// Accept waits for a connection of a channel.
func (l *Listener) Accept(ctx context.Context, c Channel) (net.Conn, error) {
	select {
	case conn := <-l.taken[c]:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the listener and what nobody took; connections that were taken live on.
func (l *Listener) Close() {
	close(l.closed)
	for _, listener := range l.listeners {
		listener.Close()
	}
	l.running.Wait()
	for _, waiting := range l.taken {
		for len(waiting) > 0 {
			(<-waiting).Close()
		}
	}
}

// Target is where a migration goes.
type Target struct {
	Node    string
	Address string
	Ports   map[string]int // as in the API
}

// Dial connects to a channel of the target.
func (t Target) Dial(ctx context.Context, where Inside, id Identity, c Channel) (net.Conn, error) {
	port := ""
	for p, channel := range t.Ports {
		if channel == int(c) {
			port = p
		}
	}
	if port == "" {
		return nil, fmt.Errorf("node %s offers no port for channel %d of the migration", t.Node, c)
	}
	var conn net.Conn
	err := where(func() (err error) {
		// No second attempt in parallel: it would run on a thread outside.
		dialer := net.Dialer{Timeout: dialLimit, FallbackDelay: -1}
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(t.Address, port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to node %s for the migration: %w", t.Node, err)
	}
	patient(conn)
	endure(conn, c)
	if id.Plain {
		return conn, nil
	}
	config, err := id.config(t.Node)
	if err != nil {
		conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to node %s for the migration: %w", t.Node, err)
	}
	return secure, nil
}

// endure lets a stream stand still for as long as it likes: the migration's own limits count, and the connection of channel Control tells a
// QEMU that takes nothing for a while from a node that is cut off.
func endure(conn net.Conn, c Channel) {
	if tcp, ok := conn.(*net.TCPConn); ok && c != Control {
		tune(tcp, 0)
	}
}

// patient makes a connection notice a peer that is cut off, also while data is on the way.
func patient(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: probes})
	tune(tcp, keepAlive*(1+probes))
}
