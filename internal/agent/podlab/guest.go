package podlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// offloads are what a guest's virtio driver agrees on when nothing is forbidden: its frames come without checksums and up to
// 64 KiB long, and it takes such frames.
const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

// maxFrame holds the largest frame with its virtio header, in bytes.
const maxFrame = 1<<16 + 64

// Guest plays a virtual machine: a network namespace whose eth0 is the other side of a tap, as virtio-net would be. Frames are
// carried over with their virtio headers, so checksum and segmentation offload are real.
type Guest struct {
	*Netns
	MAC net.HardwareAddr
}

// NewGuest plugs a guest into the tap behind fd, which it takes over.
func NewGuest(t testing.TB, fd *os.File) *Guest {
	t.Helper()
	g := &Guest{Netns: NewNetns(t), MAC: net.HardwareAddr{0x02, 0x00, 0x00, 0x12, 0x34, 0x56}}
	var nic *os.File
	g.Do(func() error {
		tap := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1, NonPersist: true,
		}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		nic = tap.Fds[0]
		if err := netlink.LinkSetHardwareAddr(tap, g.MAC); err != nil {
			return err
		}
		return netlink.LinkSetMTU(tap, MTU)
	})
	for _, f := range []*os.File{fd, nic} {
		if err := setOffloads(f); err != nil {
			t.Fatal(err)
		}
	}
	var wires sync.WaitGroup
	wires.Go(func() { carry(fd, nic) })
	wires.Go(func() { carry(nic, fd) })
	t.Cleanup(func() { fd.Close(); nic.Close(); wires.Wait() })
	return g
}

// carry copies frame by frame until either side is closed.
func carry(to io.Writer, from io.Reader) {
	frame := make([]byte, maxFrame)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		// A device that is down, or a frame that the kernel finds malformed, loses the frame, as hardware would.
		if _, err := to.Write(frame[:n]); err != nil && !isFrameLoss(err) {
			return
		}
	}
}

func isFrameLoss(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENETDOWN)
}

func setOffloads(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads) }); err != nil {
		return err
	}
	return failure
}

// Up sets the guest's NIC up, with static addresses and default routes if any are given.
func (g *Guest) Up(t testing.TB, ips []netip.Prefix, gateways []netip.Addr) {
	t.Helper()
	g.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, ip := range ips {
			if err := AddAddr(link, ip); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for _, gateway := range gateways {
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("route by %s: %w", gateway, err)
			}
		}
		return nil
	})
}
