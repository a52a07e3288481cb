// Package netns runs functions inside other network namespaces. It must not know what they do there.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Own is the path of the namespace that the agent runs in. It names the calling thread: the process's first thread cannot be
// discarded by the Go runtime and may have been left behind in another namespace, so /proc/self may lie.
const Own = "/proc/thread-self/ns/net"

// Do runs f inside the network namespace at path (a bind mount such as /run/netns/x, or /proc/PID/ns/net) and returns its
// error. f runs in a goroutine of its own that is locked to its thread: goroutines that f starts are NOT in the namespace, and
// sockets that f opens stay in it. When the thread cannot return to its namespace it is discarded, never reused.
func Do(path string, f func() error) error {
	target, err := Open(path)
	if err != nil {
		return err
	}
	defer target.Close()
	return In(target, f)
}

// In is Do for a namespace that is already open.
func In(target *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer func() {
			// A function that ends its goroutine (t.FailNow does) must not leave the caller waiting, nor the thread in use.
			select {
			case done <- errors.New("the function ended its goroutine inside the network namespace"):
			default:
			}
		}()
		home, err := os.Open(Own)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the agent's own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", target.Name(), err)
			return
		}
		result := f()
		// Still locked when the return fails: the runtime then ends the thread with the goroutine.
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread()
		}
		done <- result
	}()
	return <-done
}

// Open opens the namespace at path, and fails when the path is not a namespace: a bind mount that was removed leaves an
// ordinary empty file behind.
func Open(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &stat); err != nil {
		file.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	if stat.Type != unix.NSFS_MAGIC && stat.Type != unix.PROC_SUPER_MAGIC {
		file.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, os.ErrNotExist)
	}
	return file, nil
}

// New makes a namespace with its loopback down. It lives as long as the file is open, or a process or a socket is in it.
func New() (*os.File, error) {
	made := make(chan error, 1)
	var file *os.File
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the new namespace and ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			file, err = os.Open(Own)
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return file, nil
}

// Path is a path of an open namespace that every thread of this process can open.
func Path(file *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()) }

// Exists says whether there is a network namespace at path.
func Exists(path string) bool {
	file, err := Open(path)
	if err != nil {
		return false
	}
	file.Close()
	return true
}

// Same says whether two paths are the same namespace.
func Same(a, b string) (bool, error) {
	first, err := os.Stat(a)
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	second, err := os.Stat(b)
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	return os.SameFile(first, second), nil
}
