package nmstate

import (
	"fmt"
	"net/netip"
	"strings"
)

// Op is one change of a node. Its text is what logs and tests show.
type Op interface {
	fmt.Stringer
	phase() phase
}

// phase orders the changes: what is in the way goes first, bridges are made before their ports join, addresses and routes come last.
type phase int

const (
	phaseDeleteRoutes phase = iota
	phaseDetach
	phaseDelete
	phaseAdd
	phaseAddUpper // on top of what phaseAdd made
	phaseAttach
	phaseSet
	phaseDeleteAddress
	phaseLink
	phaseAddress
	phaseRoutes
	phaseOVN
)

// The changes.
type (
	// DeleteRoute removes a configured route.
	DeleteRoute struct{ Route Route }
	// Detach takes a device off a bridge of the kernel.
	Detach struct{ Device, Bridge string }
	// RemovePort takes a port off an OVS bridge; one that OVS made vanishes.
	RemovePort struct{ Bridge, Port string }
	// DeleteLink removes a device.
	DeleteLink struct{ Device string }
	// DeleteBridge removes an OVS bridge.
	DeleteBridge struct{ Bridge string }
	// AddLink makes a linux-bridge, veth, dummy or vlan.
	AddLink struct{ Interface Interface }
	// AddBridge makes an OVS bridge.
	AddBridge struct{ Bridge string }
	// Attach puts a device into a bridge of the kernel.
	Attach struct{ Device, Bridge string }
	// AddPort puts a device into an OVS bridge, and makes it when it is internal.
	AddPort struct {
		Bridge, Port string
		Internal     bool
	}
	// SetMTU sets the largest packet; OVS says whether the device is one of Open vSwitch's own.
	SetMTU struct {
		Device string
		MTU    int
		OVS    bool
	}
	// SetMAC sets the hardware address.
	SetMAC struct {
		Device, MAC string
		OVS         bool
	}
	// SetAlias sets the description.
	SetAlias struct{ Device, Text string }
	// SetBridge sets options of a linux-bridge; nil ones stay.
	SetBridge struct {
		Bridge  string
		Options BridgeOptions
	}
	// SetPort sets options of a linux-bridge's port; nil ones stay.
	SetPort struct{ Port Port }
	// SetVLANs makes a linux-bridge's port carry exactly these tags.
	SetVLANs struct {
		Port    string
		Entries []VLANEntry
	}
	// SetOVSBridge sets options of an OVS bridge; nil and empty ones stay.
	SetOVSBridge struct {
		Bridge  string
		Options BridgeOptions
	}
	// SetOVSPort sets the tags of an OVS bridge's port.
	SetOVSPort struct {
		Port string
		VLAN PortVLAN
	}
	// SetIPv6 turns the family on or off.
	SetIPv6 struct {
		Device  string
		Enabled bool
	}
	// SetAutoconf says whether routers may configure the device.
	SetAutoconf struct {
		Device  string
		Enabled bool
	}
	// SetLink turns a device on or off.
	SetLink struct {
		Device string
		Up     bool
	}
	// DeleteAddress and AddAddress change one address.
	DeleteAddress struct {
		Device  string
		Address netip.Prefix
	}
	AddAddress struct {
		Device  string
		Address netip.Prefix
	}
	// AddRoute adds a route.
	AddRoute struct{ Route Route }
	// SetMappings replaces all bridge mappings.
	SetMappings struct{ Mappings []BridgeMapping }
	// SetOVSDB changes keys of Open vSwitch's own row; nil and "" remove.
	SetOVSDB struct{ ExternalIDs, OtherConfig map[string]*string }
)

func (DeleteRoute) phase() phase   { return phaseDeleteRoutes }
func (Detach) phase() phase        { return phaseDetach }
func (RemovePort) phase() phase    { return phaseDetach }
func (DeleteLink) phase() phase    { return phaseDelete }
func (DeleteBridge) phase() phase  { return phaseDelete }
func (AddBridge) phase() phase     { return phaseAdd }
func (Attach) phase() phase        { return phaseAttach }
func (AddPort) phase() phase       { return phaseAttach }
func (SetMTU) phase() phase        { return phaseSet }
func (SetMAC) phase() phase        { return phaseSet }
func (SetAlias) phase() phase      { return phaseSet }
func (SetBridge) phase() phase     { return phaseSet }
func (SetPort) phase() phase       { return phaseSet }
func (SetVLANs) phase() phase      { return phaseSet }
func (SetOVSBridge) phase() phase  { return phaseSet }
func (SetOVSPort) phase() phase    { return phaseSet }
func (SetIPv6) phase() phase       { return phaseSet }
func (SetAutoconf) phase() phase   { return phaseSet }
func (SetLink) phase() phase       { return phaseLink }
func (DeleteAddress) phase() phase { return phaseDeleteAddress }
func (AddAddress) phase() phase    { return phaseAddress }
func (AddRoute) phase() phase      { return phaseRoutes }
func (SetMappings) phase() phase   { return phaseOVN }
func (SetOVSDB) phase() phase      { return phaseOVN }
func (o AddLink) phase() phase {
	if o.Interface.Type == VLANType {
		return phaseAddUpper
	}
	return phaseAdd
}

func (o DeleteRoute) String() string  { return "delete route " + o.Route.String() }
func (o Detach) String() string       { return "take " + o.Device + " off linux-bridge " + o.Bridge }
func (o RemovePort) String() string   { return "take " + o.Port + " off ovs-bridge " + o.Bridge }
func (o DeleteLink) String() string   { return "delete " + o.Device }
func (o DeleteBridge) String() string { return "delete ovs-bridge " + o.Bridge }
func (o AddBridge) String() string    { return "add ovs-bridge " + o.Bridge }
func (o Attach) String() string       { return "put " + o.Device + " into linux-bridge " + o.Bridge }
func (o AddRoute) String() string     { return "add route " + o.Route.String() }
func (o SetAlias) String() string {
	return fmt.Sprintf("set description of %s to %q", o.Device, o.Text)
}
func (o SetMTU) String() string  { return fmt.Sprintf("set mtu of %s to %d", o.Device, o.MTU) }
func (o SetMAC) String() string  { return fmt.Sprintf("set mac-address of %s to %s", o.Device, o.MAC) }
func (o SetIPv6) String() string { return "turn IPv6 of " + o.Device + " " + onOff(o.Enabled) }
func (o SetAutoconf) String() string {
	return "turn IPv6 autoconf of " + o.Device + " " + onOff(o.Enabled)
}
func (o DeleteAddress) String() string {
	return fmt.Sprintf("delete address %s of %s", o.Address, o.Device)
}
func (o AddAddress) String() string  { return fmt.Sprintf("add address %s to %s", o.Address, o.Device) }
func (o SetMappings) String() string { return "set bridge mappings to " + FormatMappings(o.Mappings) }

func (o AddPort) String() string {
	kind := ""
	if o.Internal {
		kind = "internal port "
	}
	return "put " + kind + o.Port + " into ovs-bridge " + o.Bridge
}

func (o AddLink) String() string {
	text := fmt.Sprintf("add %s %s", o.Interface.Type, o.Interface.Name)
	if v := o.Interface.Veth; v != nil {
		text += " with peer " + v.Peer
	}
	if v := o.Interface.VLAN; v != nil {
		text += fmt.Sprintf(" on %s id %d", v.BaseIface, v.ID)
	}
	return text
}

func (o SetBridge) String() string {
	return "set linux-bridge " + o.Bridge + " " + describe(o.Options)
}

func (o SetOVSBridge) String() string {
	return "set ovs-bridge " + o.Bridge + " " + describe(o.Options)
}

func (o SetPort) String() string {
	return "set port " + describe(o.Port)
}

func (o SetVLANs) String() string {
	var parts []string
	for _, e := range o.Entries {
		part := fmt.Sprint(e.Low)
		if e.High != e.Low {
			part += fmt.Sprintf("-%d", e.High)
		}
		if e.PVID {
			part += " untagged"
		}
		parts = append(parts, part)
	}
	return "set VLANs of " + o.Port + " to " + strings.Join(parts, ", ")
}

func (o SetOVSPort) String() string { return "set VLANs of " + o.Port + " to " + describe(o.VLAN) }

func (o SetLink) String() string {
	if o.Up {
		return "set " + o.Device + " up"
	}
	return "set " + o.Device + " down"
}

func (o SetOVSDB) String() string {
	return "set ovs-db " + describe(OVSDB(o))
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
