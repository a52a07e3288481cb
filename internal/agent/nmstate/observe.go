package nmstate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/ovs"
	"patchbay/internal/nmstate"
)

// Observe reads the network as it is now.
func (n *Node) Observe() (nmstate.State, error) {
	s := nmstate.State{Hostname: &nmstate.Hostname{Running: n.Name}, DNS: readResolver("/etc/resolv.conf"), RouteRules: &nmstate.RouteRules{Config: []map[string]any{}}}
	o, err := n.look()
	if err != nil {
		return s, err
	}
	for _, device := range o.links {
		if transient(device.Attrs().Name) {
			continue
		}
		i, err := o.device(device)
		if err != nil {
			return s, err
		}
		s.Interfaces = append(s.Interfaces, i)
	}
	s.Interfaces = append(s.Interfaces, o.switchInterfaces(n.Management)...)
	slices.SortFunc(s.Interfaces, func(a, b nmstate.Interface) int {
		return strings.Compare(a.Name+" "+string(a.Type), b.Name+" "+string(b.Type))
	})
	if s.Routes, err = o.routes(); err != nil {
		return s, err
	}
	external, other, err := n.Switch.Settings()
	if err != nil {
		return s, err
	}
	s.OVN = &nmstate.OVN{BridgeMappings: nmstate.ParseMappings(external[mappingsKey])}
	s.OVSDB = &nmstate.OVSDB{ExternalIDs: pointers(external), OtherConfig: pointers(other)}
	return s, nil
}

// mappingsKey is where ovn-controller reads the bridge mappings.
const mappingsKey = "ovn-bridge-mappings"

// observer holds one look at the kernel and the switch.
type observer struct {
	links   []netlink.Link
	names   map[int]string
	raw     map[int]rawBridge
	tags    map[int][]nmstate.VLANEntry
	bridges []ovs.Bridge
	// port and bridge of the switch by the device's name
	plugged map[string]ovs.BridgePort
	home    map[string]string
}

func (n *Node) look() (*observer, error) {
	o := &observer{names: map[int]string{}, plugged: map[string]ovs.BridgePort{}, home: map[string]string{}, bridges: n.Switch.Bridges()}
	var err error
	// A dump that was interrupted by a change is repeated a few times: a half list would look like removed devices.
	for range 5 {
		if o.links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	for _, l := range o.links {
		o.names[l.Attrs().Index] = l.Attrs().Name
	}
	if o.raw, err = readBridges(); err != nil {
		return nil, err
	}
	o.tags = readTags()
	for _, b := range o.bridges {
		for _, p := range b.Ports {
			o.plugged[p.Name], o.home[p.Name] = p, b.Name
		}
	}
	return o, nil
}

// readTags reads the tags of all bridge ports; a kernel without VLAN filtering has none.
func readTags() map[int][]nmstate.VLANEntry {
	list, err := netlink.BridgeVlanList()
	if err != nil {
		return nil
	}
	tags := map[int][]nmstate.VLANEntry{}
	for index, vlans := range list {
		for _, v := range vlans {
			tags[int(index)] = append(tags[int(index)], nmstate.VLANEntry{Low: int(v.Vid), High: int(v.Vid), PVID: v.PortVID(), Untagged: v.EngressUntag()})
		}
	}
	return tags
}

func (o *observer) device(l netlink.Link) (nmstate.Interface, error) {
	a := l.Attrs()
	i := nmstate.Interface{Name: a.Name, Type: o.typeOf(l), State: nmstate.Down, MTU: new(a.MTU)}
	if a.Flags&net.FlagUp != 0 {
		i.State = nmstate.Up
	}
	if len(a.HardwareAddr) == 6 {
		i.MAC = new(strings.ToUpper(a.HardwareAddr.String()))
	}
	if a.Alias != "" {
		i.Description = new(a.Alias)
	}
	switch {
	case o.home[a.Name] != "":
		i.Controller = new(o.home[a.Name])
	case a.MasterIndex != 0 && o.names[a.MasterIndex] != "":
		i.Controller = new(o.names[a.MasterIndex])
	}
	switch device := l.(type) {
	case *netlink.Veth:
		if i.Type == nmstate.VethPair {
			i.Veth = &nmstate.Veth{Peer: o.names[a.ParentIndex]}
		}
	case *netlink.Vlan:
		i.VLAN = &nmstate.VLAN{BaseIface: o.names[a.ParentIndex], ID: device.VlanId}
	case *netlink.Bridge:
		i.Bridge = o.linuxBridge(a.Index)
	}
	return i, o.addresses(l, &i)
}

func (o *observer) typeOf(l netlink.Link) nmstate.Type {
	a := l.Attrs()
	if p, ok := o.plugged[a.Name]; ok && p.Type == "internal" {
		return nmstate.OVSInterface
	}
	switch l.Type() {
	case "bridge":
		return nmstate.LinuxBridge
	case "veth":
		// Its other end is elsewhere: to this node it is a card.
		if a.NetNsID >= 0 || o.names[a.ParentIndex] == "" {
			return nmstate.Ethernet
		}
		return nmstate.VethPair
	case "dummy":
		return nmstate.Dummy
	case "vlan":
		return nmstate.VLANType
	case "bond":
		return nmstate.BondType
	case "openvswitch":
		return nmstate.OVSInterface
	case "device":
		if a.Flags&net.FlagLoopback != 0 {
			return nmstate.Loopback
		}
		return nmstate.Ethernet
	}
	return nmstate.Unknown
}

func (o *observer) linuxBridge(index int) *nmstate.Bridge {
	b := &nmstate.Bridge{Options: o.raw[index].options, Port: []nmstate.Port{}}
	filtering := b.Options != nil && b.Options.VLANFiltering != nil && *b.Options.VLANFiltering
	for _, l := range o.links {
		if l.Attrs().MasterIndex != index {
			continue
		}
		p := nmstate.Port{}
		if raw := o.raw[l.Attrs().Index].port; raw != nil {
			p = *raw
		}
		p.Name = l.Attrs().Name
		if filtering {
			p.VLAN = nmstate.PortVLANOf(o.tags[l.Attrs().Index])
		}
		b.Port = append(b.Port, p)
	}
	slices.SortFunc(b.Port, func(a, b nmstate.Port) int { return strings.Compare(a.Name, b.Name) })
	return b
}

func (o *observer) addresses(l netlink.Link, i *nmstate.Interface) error {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("list addresses of %s: %w", i.Name, err)
	}
	v4, v6 := &nmstate.IP{}, &nmstate.IP{}
	for _, a := range list {
		ones, _ := a.Mask.Size()
		address := nmstate.Address{IP: a.IP.String(), PrefixLength: ones}
		if a.IP.To4() != nil {
			v4.Address = append(v4.Address, address)
		} else {
			v6.Address = append(v6.Address, address)
		}
	}
	v4.Enabled, v4.DHCP = new(len(v4.Address) > 0), new(false)
	v6.Enabled, v6.DHCP = new(sysctl(i.Name, "disable_ipv6") == "0"), new(false)
	v6.Autoconf = new(*v6.Enabled && sysctl(i.Name, "autoconf") == "1" && sysctl(i.Name, "accept_ra") != "0")
	i.IPv4, i.IPv6 = v4, v6
	return nil
}

func sysctlPath(device, key string) string {
	return filepath.Join("/proc/sys/net/ipv6/conf", device, key)
}

func sysctl(device, key string) string {
	data, err := os.ReadFile(sysctlPath(device, key))
	if err != nil {
		return "" // a kernel without IPv6, or a device that is gone
	}
	return strings.TrimSpace(string(data))
}

// switchInterfaces are the bridges of the switch, and what exists in the switch only.
func (o *observer) switchInterfaces(management string) []nmstate.Interface {
	var out []nmstate.Interface
	for _, b := range o.bridges {
		i := nmstate.Interface{Name: b.Name, Type: nmstate.OVSBridge, State: nmstate.Up, Bridge: &nmstate.Bridge{
			Port: []nmstate.Port{},
			Options: &nmstate.BridgeOptions{
				STP: &nmstate.STP{Enabled: new(b.STP)}, RSTP: new(b.RSTP), McastSnooping: new(b.McastSnooping), FailMode: b.FailMode, Datapath: string(b.Datapath),
			},
		}}
		for _, p := range b.Ports {
			if transient(p.Name) || (p.Owner != "" && p.Name != management) || p.Type == "geneve" {
				continue
			}
			i.Bridge.Port = append(i.Bridge.Port, nmstate.Port{Name: p.Name, VLAN: portVLAN(p)})
			if p.Type == "patch" {
				out = append(out, nmstate.Interface{Name: p.Name, Type: nmstate.OVSInterface, State: nmstate.Up, Controller: new(b.Name), Patch: &nmstate.Patch{Peer: p.Peer}})
			}
		}
		out = append(out, i)
	}
	return out
}

// portVLAN is what a document says of a port of the switch.
func portVLAN(p ovs.BridgePort) *nmstate.PortVLAN {
	var entries []nmstate.VLANEntry
	for _, tag := range p.Trunks {
		entries = append(entries, nmstate.VLANEntry{Low: tag, High: tag})
	}
	switch {
	case p.Tag != nil && len(p.Trunks) == 0:
		return &nmstate.PortVLAN{Mode: "access", Tag: p.Tag}
	case len(p.Trunks) == 0:
		return nil
	}
	v := nmstate.PortVLANOf(entries)
	if p.Tag != nil {
		v.EnableNative, v.Tag = new(true), p.Tag
	}
	return v
}

func (o *observer) routes() (*nmstate.Routes, error) {
	out := &nmstate.Routes{Running: []nmstate.Route{}, Config: []nmstate.Route{}}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			device := o.names[r.LinkIndex]
			if device == "" || transient(device) || r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST || r.Dst != nil && r.Dst.IP.IsMulticast() {
				continue
			}
			route := describeRoute(r, device, family)
			out.Running = append(out.Running, route)
			if r.Protocol != unix.RTPROT_KERNEL && r.Protocol != unix.RTPROT_RA && r.Protocol != unix.RTPROT_REDIRECT {
				out.Config = append(out.Config, route)
			}
		}
	}
	// The kernel's order says nothing, and a report must not change for it.
	for _, list := range [][]nmstate.Route{out.Running, out.Config} {
		slices.SortStableFunc(list, func(a, b nmstate.Route) int { return strings.Compare(a.String(), b.String()) })
	}
	return out, nil
}

func describeRoute(r netlink.Route, device string, family int) nmstate.Route {
	out := nmstate.Route{NextHopInterface: device, TableID: new(r.Table)}
	switch {
	case r.Dst != nil:
		out.Destination = r.Dst.String()
	case family == unix.AF_INET6:
		out.Destination = "::/0"
	default:
		out.Destination = "0.0.0.0/0"
	}
	if len(r.Gw) > 0 {
		out.NextHopAddress = r.Gw.String()
	}
	if r.Priority != 0 {
		out.Metric = new(r.Priority)
	}
	return out
}

// readResolver reports what the node's programs are told; it is never written.
func readResolver(path string) *nmstate.DNS {
	r := &nmstate.Resolver{Server: []string{}, Search: []string{}}
	data, err := os.ReadFile(path)
	if err != nil {
		return &nmstate.DNS{Running: r}
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.Server = append(r.Server, fields[1])
		case "search":
			r.Search = fields[1:]
		case "options":
			r.Options = fields[1:]
		}
	}
	return &nmstate.DNS{Running: r}
}

func pointers(values map[string]string) map[string]*string {
	out := map[string]*string{}
	for key, value := range values {
		out[key] = new(value)
	}
	return out
}
