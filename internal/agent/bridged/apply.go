package bridged

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
)

// Open makes it so in the namespace at path and returns the tap's descriptors. What an attempt before has left half done is completed. A
// tap that exists is never replaced: link.ErrBusy.
func Open(ctx context.Context, path string, p Plan) ([]*os.File, error) {
	var files []*os.File
	err := netns.Do(path, func() (err error) {
		if files, err = link.MakeTap(p.tap()); err != nil {
			return err
		}
		return p.apply(ctx)
	})
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("bridge interface %s of the pod: %w", p.Uplink, err)
	}
	return files, nil
}

// Refresh makes it so again beside a running guest, which notices nothing.
func Refresh(ctx context.Context, path string, p Plan) error {
	err := netns.Do(path, func() error {
		if stands, err := link.TapStands(p.Tap); err != nil || !stands {
			return errors.Join(fmt.Errorf("the guest's tap %s is gone; restart the VM", p.Tap), err)
		}
		return p.apply(ctx)
	})
	if err != nil {
		return fmt.Errorf("bridge interface %s of the pod: %w", p.Uplink, err)
	}
	return nil
}

func (p Plan) tap() link.Tap { return link.Tap{Name: p.Tap, MTU: p.MTU, Queues: p.Queues} }

// apply runs in the pod's namespace. Every step leaves alone what is already right.
func (p Plan) apply(ctx context.Context) error {
	bridge, err := p.ensureBridge()
	if err != nil {
		return err
	}
	nic, err := p.ensureNIC()
	if err != nil {
		return err
	}
	if err := p.enslave(nic, bridge); err != nil {
		return err
	}
	if err := p.ensureStandIn(); err != nil {
		return err
	}
	tap, err := netlink.LinkByName(p.Tap)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", p.Tap, err)
	}
	if err := quiet(p.Tap); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(tap, bridge); err != nil {
		return fmt.Errorf("put %s into %s: %w", p.Tap, p.Bridge, err)
	}
	return link.ConfigureTap(ctx, nil, p.tap())
}

// quiet keeps the kernel from taking part in the network: its own addresses there would be the pod's, not the guest's.
func quiet(device string) error {
	return link.Set(link.ForDevice(device, link.Setting{Key: "ipv6/disable_ipv6", Value: "1"})...)
}

func (p Plan) ensureBridge() (netlink.Link, error) {
	bridge, err := find(p.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.HardwareAddr = p.Bridge, p.bridgeMAC()
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", p.Bridge, err)
		}
		if bridge, err = netlink.LinkByName(p.Bridge); err != nil {
			return nil, fmt.Errorf("find bridge %s: %w", p.Bridge, err)
		}
	}
	if err := quiet(p.Bridge); err != nil {
		return nil, err
	}
	if p.MTU > 0 && bridge.Attrs().MTU != p.MTU {
		if err := netlink.LinkSetMTU(bridge, p.MTU); err != nil {
			return nil, fmt.Errorf("set the MTU of %s: %w", p.Bridge, err)
		}
	}
	if p.Server.IsValid() {
		server := &netlink.Addr{IPNet: &net.IPNet{IP: p.Server.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrReplace(bridge, server); err != nil {
			return nil, fmt.Errorf("give %s to %s: %w", p.Server, p.Bridge, err)
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set %s up: %w", p.Bridge, err)
	}
	return bridge, nil
}

// find returns nil for a device that is not there.
func find(name string) (netlink.Link, error) {
	device, err := netlink.LinkByName(name)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return device, nil
}

// memo marks a bridged interface in its alias, with the address that it had.
const memo = "patchbay-bridged "

// ensureNIC gives the plugin's interface its other name.
func (p Plan) ensureNIC() (netlink.Link, error) {
	nic, err := find(p.NIC)
	if err != nil || nic != nil {
		return nic, err
	}
	if nic, err = netlink.LinkByName(p.Uplink); err != nil {
		return nil, fmt.Errorf("the plugin's interface %s: %w", p.Uplink, err)
	}
	if err := netlink.LinkSetAlias(nic, memo+nic.Attrs().HardwareAddr.String()); err != nil {
		return nil, fmt.Errorf("mark %s: %w", p.Uplink, err)
	}
	if err := netlink.LinkSetDown(nic); err != nil {
		return nil, fmt.Errorf("set %s down: %w", p.Uplink, err)
	}
	if err := netlink.LinkSetName(nic, p.NIC); err != nil {
		return nil, fmt.Errorf("rename %s to %s: %w", p.Uplink, p.NIC, err)
	}
	return netlink.LinkByName(p.NIC)
}

// enslave makes the interface a port. Its own address must differ from the guest's, or the bridge would keep the guest's frames.
func (p Plan) enslave(nic, bridge netlink.Link) error {
	if err := flush(nic); err != nil {
		return err
	}
	if err := quiet(p.NIC); err != nil {
		return err
	}
	keeps := nic.Type() == "macvlan" // it receives for its own address only, which must be the guest's
	own := derived("nic", p.Uplink, p.MAC)
	if keeps {
		own = p.guest()
	}
	if nic.Attrs().HardwareAddr.String() != own.String() {
		if err := netlink.LinkSetHardwareAddr(nic, own); err != nil {
			return fmt.Errorf("set the MAC address of %s: %w", p.NIC, err)
		}
	}
	if err := netlink.LinkSetMaster(nic, bridge); err != nil {
		return fmt.Errorf("put %s into %s: %w", p.NIC, p.Bridge, err)
	}
	// The bridge must not learn the guest's own address from a frame that the network sends back.
	if err := netlink.LinkSetLearning(nic, false); err != nil {
		return fmt.Errorf("keep %s from learning on %s: %w", p.Bridge, p.NIC, err)
	}
	if keeps {
		if err := disown(nic, own); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return fmt.Errorf("set %s up: %w", p.NIC, err)
	}
	return nil
}

// disown has the bridge forward what is sent to the port's own address, instead of keeping it: the guest has the same address.
func disown(nic netlink.Link, own net.HardwareAddr) error {
	entry := &netlink.Neigh{LinkIndex: nic.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: own}
	if err := netlink.NeighDel(entry); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("have the bridge forward frames for %s: %w", own, err)
	}
	return nil
}

func flush(device netlink.Link) error {
	have, err := netlink.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", device.Attrs().Name, err)
	}
	for _, a := range have {
		if err := netlink.AddrDel(device, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s from %s: %w", a.IPNet, device.Attrs().Name, err)
		}
	}
	return nil
}

// ensureStandIn makes a device that has the name, the address and the MTU of the plugin's, and no network. Kernels without dummy
// devices get a bridge without ports.
func (p Plan) ensureStandIn() error {
	// Nobody but the guest may answer ARP for its addresses.
	if err := link.Set(link.Setting{Key: "ipv4/conf/all/arp_ignore", Value: "1"}); err != nil {
		return err
	}
	standIn, err := find(p.Uplink)
	if err != nil {
		return err
	}
	if standIn == nil {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.HardwareAddr, attributes.MTU = p.Uplink, p.MAC, p.MTU
		err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attributes})
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes})
		}
		if err != nil {
			return fmt.Errorf("make the stand-in %s: %w", p.Uplink, err)
		}
		if standIn, err = netlink.LinkByName(p.Uplink); err != nil {
			return fmt.Errorf("find the stand-in %s: %w", p.Uplink, err)
		}
	}
	for _, ip := range p.IPs {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Addr().AsSlice(), Mask: net.CIDRMask(ip.Bits(), ip.Addr().BitLen())}}
		if ip.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(standIn, address); err != nil {
			return fmt.Errorf("give %s to the stand-in %s: %w", ip, p.Uplink, err)
		}
	}
	return nil
}

// Restore gives the plugin's interface its name and its address back, so that the plugin finds what it has made. It does nothing when
// the interface is not bridged, or the namespace is gone. The guest must have let the NIC go.
func Restore(path, uplink string) error {
	if !netns.Exists(path) {
		return nil
	}
	p := Names(uplink)
	err := netns.Do(path, func() error {
		nic, err := find(p.NIC)
		if err != nil || nic == nil {
			return err
		}
		mac, marked := strings.CutPrefix(nic.Attrs().Alias, memo)
		if !marked {
			return nil
		}
		for _, name := range []string{p.Uplink, p.Tap, p.Bridge} {
			if err := link.Remove(name); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetDown(nic); err != nil {
			return err
		}
		if address, err := net.ParseMAC(mac); err == nil {
			if err := netlink.LinkSetHardwareAddr(nic, address); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetName(nic, p.Uplink); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetAlias(nic, ""), netlink.LinkSetUp(nic))
	})
	if err != nil {
		return fmt.Errorf("give interface %s of the pod back: %w", uplink, err)
	}
	return nil
}
