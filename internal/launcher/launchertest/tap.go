package launchertest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Taps opens a tap device of so many queues in a network namespace of its own, which goes away with the files.
func Taps(t testing.TB, queues int) []*os.File {
	t.Helper()
	type result struct {
		files []*os.File
		err   error
	}
	done := make(chan result)
	go func() {
		// The thread keeps the new namespace and ends with this goroutine, because it is not unlocked.
		runtime.LockOSThread()
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			r.files, r.err = openTaps(queues)
		}
		done <- r
	}()
	r := <-done
	must(t, r.err)
	t.Cleanup(func() {
		for _, file := range r.files {
			file.Close()
		}
	})
	return r.files
}

func openTaps(queues int) ([]*os.File, error) {
	var files []*os.File
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return files, err
		}
		files = append(files, os.NewFile(uintptr(fd), "tap"))
		request, err := unix.NewIfreq("tap0")
		if err != nil {
			return files, err
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if queues > 1 {
			flags |= unix.IFF_MULTI_QUEUE
		}
		request.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return files, err
		}
	}
	return files, up("tap0")
}

// up sets a device up.
func up(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
