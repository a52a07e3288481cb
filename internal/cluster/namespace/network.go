// Package namespace makes, enters and removes the Linux namespaces of a cluster: named network namespaces (the same files that
// `ip netns` uses) and the mount namespace that each node has for itself. It must not configure anything inside a network namespace.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// networkDir is where `ip netns` looks for names.
const networkDir = "/run/netns"

// NetworkPath is the file of a named network namespace.
func NetworkPath(name string) string { return filepath.Join(networkDir, name) }

// CreateNetwork makes a named network namespace and tells whether it is new. Unlike `ip netns add` it leaves the mount of
// /run/netns as it is: the host's mount table is not ours.
func CreateNetwork(name string) (bool, error) {
	path := NetworkPath(name)
	if isNetwork(path) {
		return false, nil
	}
	if err := os.MkdirAll(networkDir, 0o755); err != nil {
		return false, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return false, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if err := file.Close(); err != nil {
		return false, err
	}
	err = onFreshThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return false, fmt.Errorf("make network namespace %s: %w", name, errors.Join(err, os.Remove(path)))
	}
	return true, nil
}

// DeleteNetwork removes the name. The namespace itself ends with its last process. A missing name is no error.
func DeleteNetwork(name string) error {
	path := NetworkPath(name)
	for isNetwork(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// NetworkInode identifies a named network namespace among /proc/PID/ns/net. It is 0 when there is none of that name.
func NetworkInode(name string) uint64 {
	if !isNetwork(NetworkPath(name)) {
		return 0
	}
	var stat unix.Stat_t
	if err := unix.Stat(NetworkPath(name), &stat); err != nil {
		return 0
	}
	return stat.Ino
}

// isNetwork tells a bound namespace from the empty file that remains when the host was restarted.
func isNetwork(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

// InNetwork runs f on a thread inside a named network namespace. Sockets that f opens and processes that f starts belong to that
// namespace; goroutines that f starts do not.
func InNetwork(name string, f func() error) error {
	return onFreshThread(func() error {
		if err := EnterNetwork(name); err != nil {
			return err
		}
		return f()
	})
}

// EnterNetwork moves the calling thread. The caller has locked its goroutine to the thread and never unlocks it.
func EnterNetwork(name string) error {
	return enter(NetworkPath(name), unix.CLONE_NEWNET)
}

// DialContext gives a dial function for addresses (not names) inside a named network namespace.
func DialContext(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := InNetwork(name, func() error {
			var err error
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Listen opens a listening socket inside a named network namespace.
func Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := InNetwork(name, func() error {
		var err error
		listener, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return listener, err
}

func enter(path string, kind int) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// OnThread runs f on a thread of its own, on which f may enter namespaces. The thread ends with f.
func OnThread(f func() error) error { return onFreshThread(f) }

// onFreshThread runs f on a thread that ends with it. The goroutine stays locked on purpose: the runtime then ends the thread
// instead of giving other goroutines one whose namespaces are changed.
func onFreshThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the process in /proc and does not end before it: leave it alone, and hold it while
			// another thread does the work.
			done <- onFreshThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}
