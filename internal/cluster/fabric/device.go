package fabric

import (
	"context"
	"fmt"
	"net"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"patchbay/internal/cluster/namespace"
)

// DialContext gives a dial function for addresses (not names) inside a cluster's network namespace.
func DialContext(ns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return namespace.DialContext(ns)
}

// ethtool commands and request of linux/ethtool.h.
const ethtoolSetTxChecksum = 0x17

type ethtoolValue struct{ command, data uint32 }

// ifreq is struct ifreq of linux/if.h with a pointer as its data.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// disableChecksumOffload makes the kernel complete checksums of what it sends through a device. It acts in the network namespace
// of the calling thread.
func disableChecksumOffload(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := ethtoolValue{command: ethtoolSetTxChecksum}
	request := ifreq{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("turn off checksum offload of %s: %w", device, errno)
	}
	return nil
}

// nftTable holds the ingress hooks of the fabric's devices. The agent has tables of its own.
const nftTable = "patchbay-fabric"

// dropAtIngress keeps the kernel from handling frames that Open vSwitch reads from a device. Packet sockets get their copy before
// the hook.
func dropAtIngress(ns, device string) error {
	return namespace.InNetwork(ns, func() error {
		nft, err := knftables.New(knftables.NetDevFamily, nftTable)
		if err != nil {
			return fmt.Errorf("nftables in %s: %w", ns, err)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Add(&knftables.Chain{
			Name: device, Device: knftables.PtrTo(device), Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.IngressHook),
			Priority: knftables.PtrTo(knftables.FilterPriority), Policy: knftables.PtrTo(knftables.DropPolicy),
		})
		if err := nft.Run(context.Background(), tx); err != nil {
			return fmt.Errorf("drop at ingress of %s in %s: %w", device, ns, err)
		}
		return nil
	})
}

// KernelDatapath tells whether this kernel forwards for Open vSwitch and knows Geneve. Asking for the family loads the module where
// there is one. It tries in a nameless namespace of its own.
func KernelDatapath() (bool, error) {
	found := false
	err := namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("look for the kernel's datapath: %w", err)
		}
		if _, err := netlink.GenlFamilyGet("ovs_datapath"); err != nil {
			return nil
		}
		probe := &netlink.Geneve{LinkAttrs: attributes("pb-probe", 0), ID: 1, Remote: net.IPv4(127, 0, 0, 1)}
		found = netlink.LinkAdd(probe) == nil
		return nil
	})
	return found, err
}
