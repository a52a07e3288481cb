package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/netns"
)

// Veth is a pair of devices: Host in the node's namespace, Name in the pod's, which gets the addresses.
type Veth struct {
	Host   string
	Netns  string // path of the pod's namespace
	Name   string
	MAC    net.HardwareAddr
	MTU    int
	IPs    []netip.Prefix // with the subnet's length, which is on-link
	Routes []Route
	Alias  string // shown by "ip link" on the host end
	// Several says that the pod has further interfaces in the same subnet: what is sent from an address of this one leaves
	// through it, and it answers ARP for its own addresses only.
	Several bool
}

// Route is a destination that Veth's pod reaches through a gateway.
type Route struct {
	Dest netip.Prefix
	Via  netip.Addr
}

// Connect makes the pair and configures the pod's end; guard prepares the host end. A pair whose host end has the same name is
// replaced: it is left over from a call that did not finish. On failure nothing is left.
func Connect(ctx context.Context, guard Guard, v Veth) error {
	pod, err := netns.Open(v.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	if err := Remove(v.Host); err != nil {
		return err
	}
	if err := makePair(v, int(pod.Fd())); err != nil {
		return err
	}
	err = configureHostEnd(ctx, guard, v)
	if err == nil {
		err = netns.In(pod, func() error { return configurePodEnd(guard, v) })
	}
	if err != nil {
		return errors.Join(err, Remove(v.Host))
	}
	return nil
}

func makePair(v Veth, podNetns int) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = v.Host
	attributes.MTU = v.MTU
	pair := netlink.NewVeth(attributes)
	pair.PeerName = v.Name
	pair.PeerHardwareAddr = v.MAC
	pair.PeerNamespace = netlink.NsFd(podNetns)
	pair.PeerMTU = uint32(v.MTU)
	err := netlink.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make interface %s in the pod: there is one already: %w", v.Name, err)
	}
	if err != nil {
		return fmt.Errorf("make veth pair %s-%s: %w", v.Host, v.Name, err)
	}
	return nil
}

func configureHostEnd(ctx context.Context, guard Guard, v Veth) error {
	if err := guard.Cover(ctx, v.Host); err != nil {
		return err
	}
	device, err := netlink.LinkByName(v.Host)
	if err != nil {
		return fmt.Errorf("find device %s: %w", v.Host, err)
	}
	if err := netlink.LinkSetAlias(device, v.Alias); err != nil {
		return fmt.Errorf("name the pod in the alias of %s: %w", v.Host, err)
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("set %s up: %w", v.Host, err)
	}
	return nil
}

// configurePodEnd runs in the pod's namespace. Duplicate address detection is off: OVN gives no address twice, and it would
// hold back the first packets by a second.
func configurePodEnd(guard Guard, v Veth) error {
	disableIPv6 := "1"
	if slices.ContainsFunc(v.IPs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		disableIPv6 = "0"
	}
	settings := ForDevice(v.Name,
		Setting{"ipv6/disable_ipv6", disableIPv6},
		Setting{"ipv6/accept_ra", "0"},
		Setting{"ipv6/accept_dad", "0"},
		Setting{"ipv6/dad_transmits", "0"},
		// A tap that is bridged or a guest that takes the link down must not cost the pod its addresses.
		Setting{"ipv6/keep_addr_on_down", "1"},
	)
	if err := Set(settings...); err != nil {
		return err
	}
	if !guard.PartialChecksums() {
		if err := TxChecksumOff(v.Name); err != nil {
			return err
		}
	}
	device, err := netlink.LinkByName(v.Name)
	if err != nil {
		return fmt.Errorf("find interface %s in the pod: %w", v.Name, err)
	}
	for _, ip := range v.IPs {
		if err := addAddress(device, ip); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("set the pod's %s up: %w", v.Name, err)
	}
	for _, r := range v.Routes {
		if err := addRoute(device, r); err != nil {
			return err
		}
	}
	if v.Several {
		return separate(device, v)
	}
	return nil
}

func addAddress(device netlink.Link, ip netip.Prefix) error {
	address := &netlink.Addr{IPNet: ipNet(ip)}
	if ip.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(device, address); err != nil {
		return fmt.Errorf("add address %s to %s: %w", ip, device.Attrs().Name, err)
	}
	return nil
}

func addRoute(device netlink.Link, r Route) error {
	route := &netlink.Route{LinkIndex: device.Attrs().Index, Dst: ipNet(r.Dest.Masked()), Gw: r.Via.AsSlice(), Protocol: routeProtocol}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s via %s on %s: %w", r.Dest, r.Via, device.Attrs().Name, err)
	}
	return nil
}

// Verify says what of the pair is no longer as Connect made it.
func Verify(v Veth) error {
	if _, err := netlink.LinkByName(v.Host); err != nil {
		return fmt.Errorf("the node's end %s: %w", v.Host, err)
	}
	return netns.Do(v.Netns, func() error {
		device, err := netlink.LinkByName(v.Name)
		if err != nil {
			return fmt.Errorf("interface %s of the pod: %w", v.Name, err)
		}
		if device.Attrs().Flags&net.FlagUp == 0 {
			return fmt.Errorf("interface %s of the pod is down", v.Name)
		}
		if got := device.Attrs().HardwareAddr; got.String() != v.MAC.String() {
			return fmt.Errorf("interface %s of the pod has MAC address %s, want %s", v.Name, got, v.MAC)
		}
		if err := verifyAddresses(device, v.IPs); err != nil {
			return err
		}
		return verifyRoutes(device, v.Routes)
	})
}

func verifyAddresses(device netlink.Link, want []netip.Prefix) error {
	have, err := netlink.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", device.Attrs().Name, err)
	}
	for _, ip := range want {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == ip.String() }) {
			return fmt.Errorf("interface %s of the pod lacks address %s", device.Attrs().Name, ip)
		}
	}
	return nil
}

func verifyRoutes(device netlink.Link, want []Route) error {
	have, err := netlink.RouteList(device, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", device.Attrs().Name, err)
	}
	for _, r := range want {
		if !slices.ContainsFunc(have, r.is) {
			return fmt.Errorf("the pod lacks the route to %s via %s on %s", r.Dest, r.Via, device.Attrs().Name)
		}
	}
	return nil
}

// AddRoutes adds routes through a device of the namespace at path.
func AddRoutes(path, name string, routes []Route) error {
	return netns.Do(path, func() error {
		device, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s in the pod: %w", name, err)
		}
		for _, r := range routes {
			if err := addRoute(device, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// Look returns the address and the MTU of a device of the namespace at path.
func Look(path, name string) (mac net.HardwareAddr, mtu int, err error) {
	err = netns.Do(path, func() error {
		device, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		mac, mtu = device.Attrs().HardwareAddr, device.Attrs().MTU
		return nil
	})
	return mac, mtu, err
}
