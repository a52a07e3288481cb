package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstTable and a device's index make the number of the routing table that is the device's own.
const firstTable = 100

// separate keeps apart interfaces of one pod that are in the same subnet. Without it the kernel answers ARP for any of its addresses
// on any interface and sends everything through the first, where port security drops what comes from the others' addresses.
func separate(device netlink.Link, v Veth) error {
	settings := append(ForDevice(v.Name, Setting{"ipv4/rp_filter", "2"}),
		Setting{"ipv4/conf/all/arp_ignore", "1"}, Setting{"ipv4/conf/all/arp_announce", "2"})
	if err := Set(settings...); err != nil {
		return err
	}
	table := firstTable + device.Attrs().Index
	for _, ip := range v.IPs {
		onLink := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(ip.Masked()), Scope: netlink.SCOPE_LINK, Table: table, Protocol: routeProtocol}
		if err := netlink.RouteReplace(onLink); err != nil {
			return fmt.Errorf("add route to %s to the table of %s: %w", ip.Masked(), v.Name, err)
		}
		if err := addRule(ip.Addr(), table); err != nil {
			return fmt.Errorf("add the rule for what %s sends: %w", ip.Addr(), err)
		}
	}
	for _, r := range v.Routes {
		route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(r.Dest.Masked()), Gw: r.Via.AsSlice(), Table: table, Protocol: routeProtocol}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add route to %s via %s to the table of %s: %w", r.Dest, r.Via, v.Name, err)
		}
	}
	return nil
}

func addRule(from netip.Addr, table int) error {
	rule := netlink.NewRule()
	rule.Src = ipNet(netip.PrefixFrom(from, from.BitLen()))
	rule.Table = table
	rule.Family = unix.AF_INET
	if from.Is6() {
		rule.Family = unix.AF_INET6
	}
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
