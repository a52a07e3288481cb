package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that we added, so that those of others are left alone.
const routeProtocol = 80

// HostPort is a device of the calling thread's namespace that OVS made (an internal port), with the addresses and
// routes that the host has through it.
type HostPort struct {
	Name   string
	MAC    net.HardwareAddr
	MTU    int
	IPs    []netip.Prefix
	Routes []Route
}

// ErrNoDevice says that OVS has not made the device yet.
var ErrNoDevice = errors.New("the device does not exist yet")

// ConfigureHostPort makes the device have exactly these addresses and, of our routes, exactly these. Frames that OVS puts into
// an internal port must reach the host's stack, so it is not covered by a Guard.
func ConfigureHostPort(guard Guard, p HostPort) error {
	device, err := netlink.LinkByName(p.Name)
	if notFound(err) {
		return fmt.Errorf("%s: %w", p.Name, ErrNoDevice)
	}
	if err != nil {
		return fmt.Errorf("find device %s: %w", p.Name, err)
	}
	err = Set(ForDevice(p.Name,
		Setting{"ipv4/forwarding", "1"},
		// Loose: answers to a pod's own traffic arrive with any source address.
		Setting{"ipv4/rp_filter", "2"},
		Setting{"ipv6/disable_ipv6", "0"},
		Setting{"ipv6/accept_ra", "0"},
		Setting{"ipv6/accept_dad", "0"},
		Setting{"ipv6/dad_transmits", "0"},
	)...)
	if err != nil {
		return err
	}
	if !guard.PartialChecksums() {
		if err := TxChecksumOff(p.Name); err != nil {
			return err
		}
	}
	if err := setAttributes(device, p); err != nil {
		return err
	}
	if err := syncAddresses(device, p.IPs); err != nil {
		return err
	}
	return syncRoutes(device, p.Routes)
}

func setAttributes(device netlink.Link, p HostPort) error {
	have := device.Attrs()
	if !slices.Equal(have.HardwareAddr, p.MAC) {
		if err := netlink.LinkSetHardwareAddr(device, p.MAC); err != nil {
			return fmt.Errorf("set the MAC address of %s: %w", p.Name, err)
		}
	}
	if have.MTU != p.MTU {
		if err := netlink.LinkSetMTU(device, p.MTU); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", p.Name, p.MTU, err)
		}
	}
	if have.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(device); err != nil {
			return fmt.Errorf("set %s up: %w", p.Name, err)
		}
	}
	return nil
}

func syncAddresses(device netlink.Link, want []netip.Prefix) error {
	have, err := netlink.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", device.Attrs().Name, err)
	}
	missing := slices.Clone(want)
	for _, a := range have {
		same := func(ip netip.Prefix) bool { return ip.String() == a.IPNet.String() }
		switch {
		case slices.ContainsFunc(want, same):
			missing = slices.DeleteFunc(missing, same)
		case a.Scope == int(netlink.SCOPE_UNIVERSE):
			if err := netlink.AddrDel(device, &a); err != nil {
				return fmt.Errorf("remove address %s from %s: %w", a.IPNet, device.Attrs().Name, err)
			}
		}
	}
	for _, ip := range missing {
		if err := addAddress(device, ip); err != nil {
			return err
		}
	}
	return nil
}

func syncRoutes(device netlink.Link, want []Route) error {
	filter := &netlink.Route{LinkIndex: device.Attrs().Index, Protocol: routeProtocol}
	missing := slices.Clone(want)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		have, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes of %s: %w", device.Attrs().Name, err)
		}
		for _, h := range have {
			same := func(r Route) bool { return r.is(h) }
			if slices.ContainsFunc(want, same) {
				missing = slices.DeleteFunc(missing, same)
				continue
			}
			if err := netlink.RouteDel(&h); err != nil {
				return fmt.Errorf("remove route %s from %s: %w", h.Dst, device.Attrs().Name, err)
			}
		}
	}
	for _, r := range missing {
		if err := addRoute(device, r); err != nil {
			return err
		}
	}
	return nil
}

func (r Route) is(h netlink.Route) bool {
	return h.Dst != nil && h.Dst.String() == r.Dest.Masked().String() && h.Gw.Equal(r.Via.AsSlice())
}
