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

// serveAPI carries connections from 127.0.0.1 of the host to the API server in the fabric.
func serveAPI(ctx context.Context, c layout.Cluster, port int, log *slog.Logger) error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another port with --api-port", address, err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	target := netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String()
	dial := namespace.DialContext(c.FabricNamespace())
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", address, err)
		}
		wg.Go(func() {
			server, err := dial(ctx, "tcp", target)
			if err != nil {
				log.Debug("the API server does not answer", "error", err)
				client.Close()
				return
			}
			relay(ctx, client, server)
		})
	}
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
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
}
