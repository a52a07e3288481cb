package vmdriver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"patchbay/internal/agent/netns"
)

// dialEach tries one address after the other until one answers, be it with a refusal.
func dialEach(ips []netip.Addr, dial func(netip.Addr) (net.Conn, error)) (net.Conn, error) {
	var errs []error
	for _, ip := range ips {
		conn, err := dial(ip)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if !isSilence(err) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialIn connects to a port of a guest from its pod, whose network namespace is at path.
func dialIn(ctx context.Context, path, network string, port uint16) func(netip.Addr) (net.Conn, error) {
	return func(ip netip.Addr) (conn net.Conn, err error) {
		err = netns.Do(path, func() (err error) {
			// No second attempt in parallel: it would run on a thread outside the namespace.
			dialer := net.Dialer{FallbackDelay: -1, Timeout: dialLimit}
			conn, err = dialer.DialContext(ctx, network, netip.AddrPortFrom(ip, port).String())
			return err
		})
		return conn, err
	}
}

func isSilence(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout() || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// dialLimit is how long a guest may take to answer on one family.
const dialLimit = 5 * time.Second
