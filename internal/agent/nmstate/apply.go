package nmstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/ovs"
	"patchbay/internal/nmstate"
)

// Apply makes the changes in their order and ends at the first that fails.
func (n *Node) Apply(ctx context.Context, ops []nmstate.Op) error {
	for _, op := range ops {
		if err := n.do(ctx, op); err != nil {
			return n.wrap(op, err)
		}
		n.Log.Info("node network changed", "change", op.String())
	}
	return nil
}

func (n *Node) do(ctx context.Context, op nmstate.Op) error {
	switch o := op.(type) {
	case nmstate.AddBridge:
		return n.Switch.AddBridge(ctx, o.Bridge)
	case nmstate.DeleteBridge:
		if err := n.Switch.DeleteBridge(ctx, o.Bridge); err != nil {
			return err
		}
		return n.Switch.Settle(ctx) // the bridge's device is gone
	case nmstate.AddPort:
		return n.addPort(ctx, o)
	case nmstate.RemovePort:
		return n.removePort(ctx, o)
	case nmstate.SetOVSBridge:
		return n.setOVSBridge(ctx, o)
	case nmstate.SetOVSPort:
		return n.setOVSPort(ctx, o)
	case nmstate.SetMappings:
		return n.Switch.ChangeSettings(ctx, map[string]string{mappingsKey: nmstate.FormatMappings(o.Mappings)}, nil)
	case nmstate.SetOVSDB:
		return n.Switch.ChangeSettings(ctx, values(o.ExternalIDs), values(o.OtherConfig))
	case nmstate.AddLink:
		return addLink(o.Interface)
	case nmstate.AddRoute:
		return changeRoute(o.Route, netlink.RouteReplace)
	case nmstate.DeleteRoute:
		if err := changeRoute(o.Route, netlink.RouteDel); !errors.Is(err, unix.ESRCH) && !errors.Is(err, errNoDevice) {
			return err
		}
		return nil // went with its address
	case nmstate.SetMTU:
		if o.OVS {
			return n.Switch.SetInterface(ctx, o.Device, "", o.MTU)
		}
	case nmstate.SetMAC:
		if o.OVS {
			return n.Switch.SetInterface(ctx, o.Device, o.MAC, 0)
		}
	}
	return n.onDevice(ctx, op)
}

// errNoDevice says that there is no device of a name.
var errNoDevice = errors.New("there is no such device")

func find(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("%s: %w", name, errNoDevice)
	}
	return l, err
}

// deviceWait is how long the switch may take to make a device.
const deviceWait = 10 * time.Second

// await finds a device, and waits for one that the switch makes.
func (n *Node) await(ctx context.Context, name string) (netlink.Link, error) {
	if l, err := find(name); !errors.Is(err, errNoDevice) || !n.madeBySwitch(name) {
		return l, err
	}
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := find(name)
		if !errors.Is(err, errNoDevice) {
			return l, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (n *Node) madeBySwitch(name string) bool {
	for _, b := range n.Switch.Bridges() {
		for _, p := range b.Ports {
			if p.Name == name {
				return p.Type == "internal"
			}
		}
	}
	return false
}

// onDevice makes changes of one device of the kernel.
func (n *Node) onDevice(ctx context.Context, op nmstate.Op) error {
	switch o := op.(type) {
	case nmstate.DeleteLink:
		l, err := find(o.Device)
		if errors.Is(err, errNoDevice) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	case nmstate.Detach:
		l, err := find(o.Device)
		if errors.Is(err, errNoDevice) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(l)
	}
	l, err := n.await(ctx, deviceOf(op))
	if err != nil {
		return err
	}
	switch o := op.(type) {
	case nmstate.Attach:
		bridge, err := find(o.Bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, bridge)
	case nmstate.SetMTU:
		return netlink.LinkSetMTU(l, o.MTU)
	case nmstate.SetMAC:
		mac, err := net.ParseMAC(o.MAC)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(l, mac)
	case nmstate.SetAlias:
		return netlink.LinkSetAlias(l, o.Text)
	case nmstate.SetBridge:
		return writeOptions(l.Attrs().Index, o.Options)
	case nmstate.SetPort:
		return writePort(l.Attrs().Index, o.Port)
	case nmstate.SetVLANs:
		return setVLANs(l, o.Entries)
	case nmstate.SetIPv6:
		return setIPv6(o.Device, "disable_ipv6", !o.Enabled)
	case nmstate.SetAutoconf:
		return errors.Join(setIPv6(o.Device, "autoconf", o.Enabled), setIPv6(o.Device, "accept_ra", o.Enabled))
	case nmstate.SetLink:
		if o.Up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	case nmstate.AddAddress:
		return netlink.AddrReplace(l, address(o.Address))
	case nmstate.DeleteAddress:
		if err := netlink.AddrDel(l, address(o.Address)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil // went with a device that was turned off
	}
	return fmt.Errorf("%T is not known here", op)
}

func deviceOf(op nmstate.Op) string {
	switch o := op.(type) {
	case nmstate.Attach:
		return o.Device
	case nmstate.SetMTU:
		return o.Device
	case nmstate.SetMAC:
		return o.Device
	case nmstate.SetAlias:
		return o.Device
	case nmstate.SetBridge:
		return o.Bridge
	case nmstate.SetPort:
		return o.Port.Name
	case nmstate.SetVLANs:
		return o.Port
	case nmstate.SetIPv6:
		return o.Device
	case nmstate.SetAutoconf:
		return o.Device
	case nmstate.SetLink:
		return o.Device
	case nmstate.AddAddress:
		return o.Device
	case nmstate.DeleteAddress:
		return o.Device
	}
	return ""
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // an administrator decides about it, and must not wait for a second
	}
	return a
}

func setIPv6(device, key string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	err := os.WriteFile(sysctlPath(device, key), []byte(value), 0o644)
	if errors.Is(err, os.ErrNotExist) && key == "disable_ipv6" && on {
		return nil // a kernel without IPv6
	}
	return err
}

// addLink makes a device that hangs on nothing, or on another.
func addLink(i nmstate.Interface) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = i.Name
	var device netlink.Link
	switch i.Type {
	case nmstate.LinuxBridge:
		device = &netlink.Bridge{LinkAttrs: attributes}
	case nmstate.Dummy:
		device = &netlink.Dummy{LinkAttrs: attributes}
	case nmstate.VethPair:
		pair := netlink.NewVeth(attributes)
		pair.PeerName = i.Veth.Peer
		device = pair
	case nmstate.VLANType:
		base, err := find(i.VLAN.BaseIface)
		if err != nil {
			return err
		}
		attributes.ParentIndex = base.Attrs().Index
		vlan := &netlink.Vlan{LinkAttrs: attributes, VlanId: i.VLAN.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		if i.VLAN.Protocol == "802.1ad" {
			vlan.VlanProtocol = netlink.VLAN_PROTOCOL_8021AD
		}
		device = vlan
	default:
		return fmt.Errorf("an interface of type %s cannot be made", i.Type)
	}
	err := netlink.LinkAdd(device)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return &nmstate.Error{Kind: "NotSupportedError", Text: fmt.Sprintf("this node's kernel has no interfaces of type %s; load its module on the node", i.Type)}
	}
	return err
}

func changeRoute(r nmstate.Route, change func(*netlink.Route) error) error {
	l, err := find(r.NextHopInterface)
	if err != nil {
		return err
	}
	destination, err := netip.ParsePrefix(r.Destination)
	if err != nil {
		return err
	}
	destination = destination.Masked()
	route := &netlink.Route{
		LinkIndex: l.Attrs().Index, Table: r.Table(), Protocol: unix.RTPROT_STATIC,
		Dst: &net.IPNet{IP: destination.Addr().AsSlice(), Mask: net.CIDRMask(destination.Bits(), destination.Addr().BitLen())},
	}
	if r.NextHopAddress != "" {
		gateway, err := netip.ParseAddr(r.NextHopAddress)
		if err != nil {
			return err
		}
		route.Gw = gateway.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Metric != nil {
		route.Priority = *r.Metric
	}
	err = change(route)
	if errors.Is(err, unix.ESRCH) {
		route.Protocol, route.Scope = 0, netlink.SCOPE_UNIVERSE // whoever added it
		err = change(route)
	}
	return err
}

// setVLANs makes a port carry exactly these tags.
func setVLANs(l netlink.Link, wanted []nmstate.VLANEntry) error {
	for _, have := range readTags()[l.Attrs().Index] {
		if err := netlink.BridgeVlanDel(l, uint16(have.Low), have.PVID, have.Untagged, false, true); err != nil {
			return err
		}
	}
	for _, e := range wanted {
		var err error
		if e.Low == e.High {
			err = netlink.BridgeVlanAdd(l, uint16(e.Low), e.PVID, e.Untagged, false, true)
		} else {
			err = netlink.BridgeVlanAddRange(l, uint16(e.Low), uint16(e.High), e.PVID, e.Untagged, false, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addPort prepares a device for the switch before it is plugged.
func (n *Node) addPort(ctx context.Context, o nmstate.AddPort) error {
	if !o.Internal {
		if _, err := find(o.Port); err != nil {
			return err
		}
		if err := n.Guard.Cover(ctx, o.Port); err != nil {
			return err
		}
	}
	if err := n.Switch.AddPort(ctx, o.Bridge, o.Port, o.Internal); err != nil {
		return err
	}
	if !o.Internal {
		return nil
	}
	_, err := n.await(ctx, o.Port)
	return err
}

// uncoverer is a guard that hides devices from the kernel, and gives them back.
type uncoverer interface {
	Uncover(ctx context.Context, device string) error
}

func (n *Node) removePort(ctx context.Context, o nmstate.RemovePort) error {
	if err := n.Switch.DeletePort(ctx, o.Bridge, o.Port); err != nil {
		return err
	}
	if err := n.Switch.Settle(ctx); err != nil {
		return err
	}
	if _, err := find(o.Port); err != nil {
		return nil // it was the switch's own
	}
	if guard, ok := n.Guard.(uncoverer); ok {
		return guard.Uncover(ctx, o.Port)
	}
	return nil
}

func (n *Node) setOVSBridge(ctx context.Context, o nmstate.SetOVSBridge) error {
	options := ovs.BridgeOptions{RSTP: o.Options.RSTP, McastSnooping: o.Options.McastSnooping}
	if o.Options.STP != nil {
		options.STP = o.Options.STP.Enabled
	}
	if o.Options.FailMode != "" {
		options.FailMode = &o.Options.FailMode
	}
	return n.Switch.SetBridge(ctx, o.Bridge, options)
}

func (n *Node) setOVSPort(ctx context.Context, o nmstate.SetOVSPort) error {
	switch v := o.VLAN; {
	case v.Mode == "access":
		return n.Switch.SetVLANs(ctx, o.Port, "access", v.Tag, nil)
	case v.EnableNative != nil && *v.EnableNative:
		return n.Switch.SetVLANs(ctx, o.Port, "native-untagged", v.Tag, v.Tags())
	default:
		return n.Switch.SetVLANs(ctx, o.Port, "trunk", nil, v.Tags())
	}
}

func values(keys map[string]*string) map[string]string {
	out := map[string]string{}
	for key, value := range keys {
		out[key] = ""
		if value != nil {
			out[key] = strings.TrimSpace(*value)
		}
	}
	return out
}
