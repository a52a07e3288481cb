// Package client is the agent's side of the launcher protocol: it reaches the sockets in a VM pod's run directory, from outside
// the pod, and sends requests with file descriptors to the launcher.
package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"patchbay/internal/launcher/protocol"
)

// RunDir is an open run directory of a VM pod (protocol.RunDir there; an emptyDir under the kubelet's root here). It stays valid
// when the directory is unmounted or renamed underneath.
type RunDir struct{ dir *os.File }

// Open opens a run directory by its path on the node.
func Open(path string) (*RunDir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the VM pod's run directory: %w", err)
	}
	return &RunDir{dir}, nil
}

// Close closes the directory; connections live on.
func (d *RunDir) Close() error { return d.dir.Close() }

// Path is a path of a file in the directory that is short enough for a unix socket's address. It is valid in this process while d is open.
func (d *RunDir) Path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.dir.Fd(), filepath.Base(name))
}

// OpenFile opens an ordinary file in the directory to read it. Whoever writes there is not to be trusted: a link is not followed.
func (d *RunDir) OpenFile(name string) (*os.File, error) {
	fd, err := syscall.Openat(int(d.dir.Fd()), filepath.Base(name), syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s in the VM pod: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s in the VM pod is no ordinary file", name)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Remove removes a file from the directory.
func (d *RunDir) Remove(name string) error {
	return syscall.Unlinkat(int(d.dir.Fd()), filepath.Base(name))
}

// Dial connects to a socket in the directory (protocol.QMPName, …).
func (d *RunDir) Dial(ctx context.Context, name string) (*net.UnixConn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.Path(name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s in the VM pod: %w", name, err)
	}
	return conn.(*net.UnixConn), nil
}

// Start has the launcher prepare the disks and start QEMU with the descriptors, which the caller may close afterwards. Repeating it
// with the same ID is harmless. A refusal is an error and comes with the launcher's state.
func (d *RunDir) Start(ctx context.Context, start protocol.Start, files []*os.File) (protocol.Response, error) {
	start.FDs = len(files)
	return d.call(ctx, protocol.Request{Start: &start}, files)
}

// Status asks for the launcher's state.
func (d *RunDir) Status(ctx context.Context) (protocol.Response, error) {
	return d.call(ctx, protocol.Request{Status: &protocol.Status{}}, nil)
}

// Stop ends QEMU without telling the guest.
func (d *RunDir) Stop(ctx context.Context) (protocol.Response, error) {
	return d.call(ctx, protocol.Request{Stop: &protocol.Stop{}}, nil)
}

// Digest asks for the checksums of overlays' sources. The launcher reads them whole, the first time.
func (d *RunDir) Digest(ctx context.Context, sources []string) ([]string, error) {
	response, err := d.call(ctx, protocol.Request{Digest: &protocol.Digest{Sources: sources}}, nil)
	if err == nil && len(response.Digests) != len(sources) {
		err = fmt.Errorf("the launcher answered %d checksums for %d files", len(response.Digests), len(sources))
	}
	return response.Digests, err
}

func (d *RunDir) call(ctx context.Context, request protocol.Request, files []*os.File) (protocol.Response, error) {
	conn, err := d.Dial(ctx, protocol.SocketName)
	if err != nil {
		return protocol.Response{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	response, err := exchange(conn, request, files)
	switch {
	case err != nil && ctx.Err() != nil:
		return response, fmt.Errorf("the launcher did not answer: %w", ctx.Err())
	case err != nil:
		return response, fmt.Errorf("ask the launcher: %w", err)
	case response.Error != "":
		return response, &Refusal{response.Error}
	}
	return response, nil
}

// Refusal is the launcher's answer to a request that it did not carry out.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "the launcher refused: " + r.Reason }

func exchange(conn *net.UnixConn, request protocol.Request, files []*os.File) (protocol.Response, error) {
	var response protocol.Response
	line, err := json.Marshal(request)
	if err != nil {
		return response, err
	}
	if err := send(conn, append(line, '\n'), files); err != nil {
		return response, err
	}
	answer, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return response, err
	}
	return response, json.Unmarshal(answer, &response)
}

// send writes the line with the descriptors on its first byte.
func send(conn *net.UnixConn, line []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := conn.Write(line)
		return err
	}
	fds := make([]int, len(files))
	for i, file := range files {
		raw, err := file.SyscallConn()
		if err != nil {
			return err
		}
		// File.Fd would make the shared open file blocking. The number stays valid: the caller holds the file until send returns.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	n, _, err := conn.WriteMsgUnix(line, syscall.UnixRights(fds...), nil)
	if err != nil || n == len(line) {
		return err
	}
	_, err = conn.Write(line[n:])
	return err
}
