package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/migration"
	"patchbay/internal/agent/netns"
)

// Sizes of what is streamed: what a guest's memory could be, for the fabric, which is slow where OVS has no kernel datapath, and for loopback.
const (
	fabricStream   = 96 << 20
	loopbackStream = 768 << 20
	streamRounds   = 3
)

// measureStream sends what QEMU would send through the agents' streams, with their own certificates: encrypted, and beside it plain.
func measureStream(ctx context.Context, b *bench) ([]row, error) {
	node := &corev1.Node{}
	if err := b.cluster.Client.Get(ctx, client.ObjectKey{Name: "node-2"}, node); err != nil {
		return nil, err
	}
	inside := func(name string) migration.Inside {
		return func(f func() error) error { return netns.Do("/run/netns/"+b.nodeNamespace(name), f) }
	}
	here := func(f func() error) error { return f() }
	fabric, err := b.streams(ctx, streamPath{inside("node-1"), inside("node-2"), node.Status.Addresses[0].Address, fabricStream})
	if err != nil {
		return nil, fmt.Errorf("over the fabric: %w", err)
	}
	loopback, err := b.streams(ctx, streamPath{here, here, "127.0.0.1", loopbackStream})
	if err != nil {
		return nil, fmt.Errorf("on loopback: %w", err)
	}
	return []row{
		{Figure: "migration's stream from node to node, encrypted; bare: plain", Unit: "MB/s", Ours: fabric[0], Bare: fabric[1]},
		{Figure: "… on loopback: what the processors can do", Unit: "MB/s", Ours: loopback[0], Bare: loopback[1]},
	}, nil
}

// streamPath is where a stream goes.
type streamPath struct {
	from, to migration.Inside
	address  string
	bytes    int64
}

// streams are the medians of both kinds, encrypted and plain, measured in turn.
func (b *bench) streams(ctx context.Context, p streamPath) (medians [2]float64, err error) {
	var speeds [2][]float64
	for range streamRounds {
		for kind, plain := range []bool{false, true} {
			speed, err := b.stream(ctx, p, plain)
			if err != nil {
				return medians, err
			}
			speeds[kind] = append(speeds[kind], speed)
		}
	}
	for kind := range speeds {
		slices.Sort(speeds[kind])
		medians[kind] = speeds[kind][streamRounds/2]
	}
	return medians, nil
}

func (b *bench) identity(node string, plain bool) migration.Identity {
	return migration.Identity{Dir: filepath.Join(b.cluster.Dir(), "nodes", node, "pki/agent"), Plain: plain}
}

// stream sends once and returns MB/s.
func (b *bench) stream(ctx context.Context, p streamPath, plain bool) (float64, error) {
	listener, err := migration.Listen(p.to, p.address, b.identity("node-2", plain), "node-1", migration.Memory)
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	target := migration.Target{Node: "node-2", Address: p.address, Ports: listener.Ports()}
	out, err := target.Dial(ctx, p.from, b.identity("node-1", plain), migration.Memory)
	if err != nil {
		return 0, err
	}
	in, err := listener.Accept(ctx, migration.Memory)
	if err != nil {
		return 0, err
	}
	source, sends, err := pair()
	if err != nil {
		return 0, err
	}
	receives, sink, err := pair()
	if err != nil {
		return 0, err
	}
	var count [2]migration.Counter
	ends := make(chan error, 3)
	begin := time.Now()
	go func() { ends <- migration.Splice(ctx, sends, out, &count[0]) }()
	go func() { ends <- migration.Splice(ctx, receives, in, &count[1]) }()
	go func() { ends <- pour(source, p.bytes) }()
	got, err := io.Copy(io.Discard, sink)
	took := time.Since(begin)
	_ = sink.Close() // says that nothing comes back
	err = errors.Join(err, <-ends, <-ends, <-ends)
	if err == nil && got != p.bytes {
		err = fmt.Errorf("%d of %d bytes arrived", got, p.bytes)
	}
	return float64(got) / took.Seconds() / 1e6, err
}

// pour writes bytes, says that no more follow, and waits for the other side's end.
func pour(to net.Conn, bytes int64) error {
	defer to.Close()
	page := make([]byte, 64<<10)
	for bytes > 0 {
		n, err := to.Write(page[:min(bytes, int64(len(page)))])
		if err != nil {
			return err
		}
		bytes -= int64(n)
	}
	if err := to.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, to)
	return err
}

// pair is a connected pair of unix sockets, as the agent gives one to QEMU.
func pair() (one, other net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for n, fd := range fds {
		file := os.NewFile(uintptr(fd), "stream")
		conn, connErr := net.FileConn(file)
		conns[n], err = conn, errors.Join(err, connErr, file.Close())
	}
	return conns[0], conns[1], err
}
