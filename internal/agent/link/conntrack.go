package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetConnections drops the tracked connections that an address began or that were answered from it, in the calling
// thread's namespace.
func ForgetConnections(ip netip.Addr) error {
	family := netlink.InetFamily(unix.AF_INET)
	if ip.Is6() {
		family = unix.AF_INET6
	}
	began, answered := &netlink.ConntrackFilter{}, &netlink.ConntrackFilter{}
	if err := began.AddIP(netlink.ConntrackOrigSrcIP, ip.AsSlice()); err != nil {
		return err
	}
	if err := answered.AddIP(netlink.ConntrackReplySrcIP, ip.AsSlice()); err != nil {
		return err
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, began, answered); err != nil {
		return fmt.Errorf("forget the connections of %s: %w", ip, err)
	}
	return nil
}
