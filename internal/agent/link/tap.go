package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tap is a guest's NIC as the host sees it. The device lives as long as a process holds one of its descriptors.
type Tap struct {
	Name   string
	MTU    int
	Queues int
	Alias  string // shown by "ip link"
}

// ErrBusy says that somebody holds the tap: a launcher that is still at an earlier start, or a running guest.
var ErrBusy = errors.New("the tap is in use")

func openQueue(name string, queues int) (*os.File, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: /dev/net/tun: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// MakeTap makes the tap in the calling thread's namespace and returns its descriptors, one per queue, which QEMU takes. It is down and
// not covered by a Guard yet. One that exists is never replaced, because a guest may be about to use it: ErrBusy.
func MakeTap(t Tap) ([]*os.File, error) {
	held, err := TapStands(t.Name)
	switch {
	case err != nil:
		return nil, err
	case held:
		return nil, fmt.Errorf("make tap %s: %w", t.Name, ErrBusy)
	}
	var files []*os.File
	for range max(t.Queues, 1) {
		file, err := openQueue(t.Name, t.Queues)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// ConfigureTap gives a tap of the calling thread's namespace its settings and sets it up. It may be done beside a running guest, which
// notices nothing. The guard prepares it when it is to be plugged into OVS; nil when it is for a bridge in a pod.
func ConfigureTap(ctx context.Context, guard Guard, t Tap) error {
	if guard != nil {
		if err := guard.Cover(ctx, t.Name); err != nil {
			return err
		}
	}
	device, err := netlink.LinkByName(t.Name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", t.Name, err)
	}
	if t.Alias != "" && device.Attrs().Alias != t.Alias {
		if err := netlink.LinkSetAlias(device, t.Alias); err != nil {
			return fmt.Errorf("set the alias of tap %s: %w", t.Name, err)
		}
	}
	if t.MTU > 0 && device.Attrs().MTU != t.MTU {
		if err := netlink.LinkSetMTU(device, t.MTU); err != nil {
			return fmt.Errorf("set the MTU of tap %s to %d: %w", t.Name, t.MTU, err)
		}
	}
	if device.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(device); err != nil {
			return fmt.Errorf("set tap %s up: %w", t.Name, err)
		}
	}
	return nil
}

// TapStands says whether the calling thread's namespace has the tap.
func TapStands(name string) (bool, error) {
	_, err := netlink.LinkByName(name)
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for tap %s: %w", name, err)
	}
	return true, nil
}
