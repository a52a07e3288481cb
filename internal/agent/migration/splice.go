package migration

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What of a stream is under way in this process and waits to be sent, in bytes per direction. The memory of a migration is bounded, whatever
// the guest's is, and so is what is still ahead of the last part of it while the guest stands still: QEMU counts as sent what lies here.
const (
	bufferSize = 128 << 10
	maxUnsent  = 128 << 10
)

// Counter counts the bytes of the streams of a migration.
type Counter struct{ sent, received atomic.Int64 }

// Sent and Received are from the side that counts.
func (c *Counter) Sent() int64     { return c.sent.Load() }
func (c *Counter) Received() int64 { return c.received.Load() }

// Splice copies between a local socket of QEMU and the other node until both directions have ended, then closes both. The end of
// one direction is passed on: QEMU ends its stream so, and still listens for the answer.
func Splice(ctx context.Context, local, remote net.Conn, count *Counter) error {
	stop := context.AfterFunc(ctx, func() { local.Close(); remote.Close() })
	defer stop()
	defer local.Close()
	defer remote.Close()
	var copies sync.WaitGroup
	var there, back error
	copies.Go(func() { there = pass(remote, local, &count.sent) })
	copies.Go(func() { back = pass(local, remote, &count.received) })
	copies.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(there, back)
}

// pass copies one direction. A direction that broke takes the other with it.
func pass(to, from net.Conn, count *atomic.Int64) error {
	_, err := io.CopyBuffer(counting{to, count}, onlyReader{from}, make([]byte, bufferSize))
	if err != nil {
		to.Close()
		from.Close()
		return err
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the other side may have gone first
	}
	return nil
}

// counting and onlyReader also keep io.Copy from splicing in the kernel, which would not count.
type counting struct {
	io.Writer
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

type onlyReader struct{ io.Reader }

// tune bounds how long sent data may stay without an acknowledgement, and how much waits to be sent.
func tune(conn *net.TCPConn, limit time.Duration) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
	})
}
