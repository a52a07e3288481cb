package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// proxy carries connections from 127.0.0.1 of the host to the API server in the fabric.
type proxy struct {
	listen string // address on the host
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	target string
	log    *slog.Logger
	wg     sync.WaitGroup
}

func newProxy(c layout.Cluster, port int, log *slog.Logger) *proxy {
	return &proxy{
		listen: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		dial:   namespace.DialContext(c.FabricNamespace()),
		target: netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String(),
		log:    log,
	}
}

// start listens, and serves in the background until the context ends.
func (p *proxy) start(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; end the program that has the port, or remove the cluster and choose another --api-port", p.listen, err)
	}
	p.wg.Go(func() { p.serve(ctx, listener) })
	return nil
}

// wait returns when nothing is served any more.
func (p *proxy) wait() { p.wg.Wait() }

func (p *proxy) serve(ctx context.Context, listener net.Listener) {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Error("cannot accept a connection to the API", "error", err)
			continue
		}
		p.wg.Go(func() { p.carry(ctx, client) })
	}
}

func (p *proxy) carry(ctx context.Context, client net.Conn) {
	server, err := p.dial(ctx, "tcp", p.target)
	if err != nil {
		p.log.Debug("the API server does not answer", "error", err)
		client.Close()
		return
	}
	relay(ctx, client, server)
}

// probe tells whether somebody listens.
func (p *proxy) probe(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.listen)
	if err != nil {
		return err
	}
	return conn.Close()
}

// relay copies in both directions until both have ended.
func relay(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(a, b) })
	wg.Go(func() { copyHalf(b, a) })
	wg.Wait()
	a.Close()
	b.Close()
}

// copyHalf passes the end of one direction on: watches and exec streams end in one direction first.
func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
