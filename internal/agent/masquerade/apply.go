package masquerade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"patchbay/internal/agent/netns"
)

// sysDir is where the kernel shows the settings of the calling thread's network namespace.
const sysDir = "/proc/sys"

// Applier makes plans true in pods' network namespaces.
type Applier struct {
	nft knftables.Interface
}

// NewApplier checks that nftables works here.
func NewApplier() (*Applier, error) {
	nft, err := knftables.New(Family, Table)
	if err != nil {
		return nil, fmt.Errorf("masquerade needs nftables; install the nftables package: %w", err)
	}
	return &Applier{nft: nft}, nil
}

// ErrBusy says that somebody holds the tap: a launcher that is still at an earlier start.
var ErrBusy = errors.New("the tap is in use by a start that is under way")

// Open applies the plan in the namespace and returns the tap's descriptors, one per queue. The tap lives as long as any of them
// is open. One that exists is never replaced, because a guest may be about to use it: ErrBusy.
func (a *Applier) Open(ctx context.Context, path string, p Plan) ([]*os.File, error) {
	var fds []*os.File
	err := netns.Do(path, func() (err error) {
		if err = a.applyRules(ctx, p); err != nil {
			return err
		}
		if fds, err = openTap(p); err != nil {
			return err
		}
		return configure(p)
	})
	if err != nil {
		CloseAll(fds)
		return nil, fmt.Errorf("masquerade in network namespace %s: %w", path, err)
	}
	return fds, nil
}

// Refresh applies the plan again beside a running guest, whose tap it keeps. The guest notices nothing.
func (a *Applier) Refresh(ctx context.Context, path string, p Plan) error {
	err := netns.Do(path, func() error {
		if err := a.applyRules(ctx, p); err != nil {
			return err
		}
		return configure(p)
	})
	if err != nil {
		return fmt.Errorf("masquerade in network namespace %s: %w", path, err)
	}
	return nil
}

// CloseAll closes descriptors that Open returned.
func CloseAll(fds []*os.File) {
	for _, f := range fds {
		f.Close()
	}
}

func (a *Applier) applyRules(ctx context.Context, p Plan) error {
	tx := a.nft.NewTransaction()
	p.Rules(tx)
	if err := a.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("replace nftables table %s %s: %w", Family, Table, err)
	}
	return nil
}

func openTap(p Plan) ([]*os.File, error) {
	held, err := exists(p.Device)
	switch {
	case err != nil:
		return nil, err
	case held:
		return nil, ErrBusy
	}
	flags := netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR
	if p.Queues > 1 {
		flags |= netlink.TUNTAP_MULTI_QUEUE
	}
	tap := &netlink.Tuntap{
		LinkAttrs:  netlink.LinkAttrs{Name: p.Device},
		Mode:       netlink.TUNTAP_MODE_TAP,
		Flags:      flags,
		Queues:     p.Queues,
		NonPersist: true,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make tap %s with %d queues: %w", p.Device, p.Queues, err)
	}
	return tap.Fds, nil
}

func exists(device string) (bool, error) {
	_, err := netlink.LinkByName(device)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for tap %s: %w", device, err)
	}
	return true, nil
}

// configure sets the tap up; every step leaves alone what is already right.
func configure(p Plan) error {
	link, err := netlink.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", p.Device, err)
	}
	for _, s := range p.Sysctls() {
		if err := writeSysctl(s); err != nil {
			return err
		}
	}
	if link.Attrs().HardwareAddr.String() != GatewayMAC.String() {
		if err := netlink.LinkSetHardwareAddr(link, GatewayMAC); err != nil {
			return fmt.Errorf("set MAC address of tap %s: %w", p.Device, err)
		}
	}
	if p.MTU > 0 && link.Attrs().MTU != p.MTU {
		if err := netlink.LinkSetMTU(link, p.MTU); err != nil {
			return fmt.Errorf("set MTU %d of tap %s: %w", p.MTU, p.Device, err)
		}
	}
	for _, prefix := range p.Addresses() {
		if err := netlink.AddrReplace(link, address(prefix)); err != nil {
			return fmt.Errorf("give %s to tap %s: %w", prefix, p.Device, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set tap %s up: %w", p.Device, err)
	}
	return nil
}

func address(prefix netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP:   prefix.Addr().AsSlice(),
		Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
	}}
	if prefix.Addr().Is6() {
		// the addresses are ours alone: a search for duplicates would leave the guest a second without a router
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// writeSysctl does not write a value that is already there: some settings act on every write.
func writeSysctl(s Sysctl) error {
	path := filepath.Join(sysDir, s.Key)
	now, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("kernel setting %s: %w", s.Key, err)
	}
	if string(now) == s.Value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(s.Value), 0o644); err != nil {
		return fmt.Errorf("kernel setting %s: %w", s, err)
	}
	return nil
}
