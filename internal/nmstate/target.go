package nmstate

import (
	"maps"
	"slices"
	"strings"
)

// Host is what a document cannot know of the node.
type Host struct {
	// VLANFiltering says whether the kernel's bridges can tell VLANs apart.
	VLANFiltering bool
	// Owned names the devices that belong to pods, guests and the overlay; policies must leave them alone.
	Owned func(name string) bool
}

// Target is what a desired state makes of one node: every interface that it touches, and what is to become of it. Nil fields of
// an interface stay as they are.
type Target struct {
	Interfaces   []Interface
	AddRoutes    []Route
	DeleteRoutes []Route
	// Mappings are all bridge mappings; nil leaves them alone.
	Mappings    []BridgeMapping
	ExternalIDs map[string]*string
	OtherConfig map[string]*string
}

// Merge turns a desired state into a target, given what the node has now.
func Merge(current, desired State, host Host) (Target, error) {
	m := merger{now: current.index(), host: host, at: map[string]int{}}
	for _, d := range desired.Interfaces {
		if d.State == Ignore {
			continue
		}
		if err := m.add(d); err != nil {
			return Target{}, err
		}
	}
	for _, step := range []func() error{m.joinByController, m.connectPorts, m.releaseOfAbsent, m.checkReferences} {
		if err := step(); err != nil {
			return Target{}, err
		}
	}
	t := m.target
	if desired.Routes != nil {
		for _, r := range desired.Routes.Config {
			if r.State == Absent {
				t.DeleteRoutes = append(t.DeleteRoutes, r)
			} else {
				t.AddRoutes = append(t.AddRoutes, r)
			}
		}
	}
	if desired.OVN != nil {
		t.Mappings = mergeMappings(current.Mappings(), desired.OVN.BridgeMappings)
	}
	if desired.OVSDB != nil {
		t.ExternalIDs, t.OtherConfig = desired.OVSDB.ExternalIDs, desired.OVSDB.OtherConfig
	}
	return t, nil
}

// merger collects a target.
type merger struct {
	now    map[string]*Interface
	host   Host
	target Target
	at     map[string]int // position in target by key
}

func (m *merger) get(key string) *Interface {
	if n, ok := m.at[key]; ok {
		return &m.target.Interfaces[n]
	}
	return nil
}

// touch returns the target of an interface, which keeps everything when nothing else said something about it.
func (m *merger) touch(now *Interface) *Interface {
	if t := m.get(now.key()); t != nil {
		return t
	}
	return m.put(Interface{Name: now.Name, Type: now.Type, State: now.State})
}

func (m *merger) put(i Interface) *Interface {
	m.at[i.key()] = len(m.target.Interfaces)
	m.target.Interfaces = append(m.target.Interfaces, i)
	return m.get(i.key())
}

// find looks up what the node has under the name of a desired interface.
func (m *merger) find(d Interface) *Interface {
	if d.Type == OVSBridge {
		return m.now[bridgeKey(d.Name)]
	}
	if d.Type == "" && d.State == Absent && m.now[bridgeKey(d.Name)] != nil {
		return m.now[bridgeKey(d.Name)] // its interface in the kernel goes with it
	}
	return m.now[d.Name]
}

func (m *merger) add(d Interface) error {
	now := m.find(d)
	if m.host.Owned != nil && m.host.Owned(d.Name) {
		return unfit("Interface %s belongs to pods, guests or the overlay; leave it out of the policy", d.Name)
	}
	if d.State == Absent {
		if now != nil {
			t := m.touch(now)
			t.State, t.Controller = Absent, new("")
		}
		return nil
	}
	kind, err := resolveType(d, now)
	if err != nil {
		return err
	}
	d.Type = kind
	if now == nil {
		d.setNewDefaults()
	}
	if d.CopyMACFrom != "" {
		from := m.now[d.CopyMACFrom]
		if from == nil || from.MAC == nil {
			return unfit("Interface %s: copy-mac-from names %s, which does not exist", d.Name, d.CopyMACFrom)
		}
		d.MAC = from.MAC
	}
	if d.Bridge != nil {
		own := *d.Bridge // the document stays as it is
		d.Bridge = &own
	}
	if d.Bridge != nil && kind == LinuxBridge {
		if d.Bridge, err = m.filterVLANs(d.Name, d.Bridge); err != nil {
			return err
		}
	}
	m.put(d)
	return nil
}

// setNewDefaults: a new interface has no addresses unless it is given some.
func (i *Interface) setNewDefaults() {
	if i.Type == OVSBridge {
		return
	}
	if i.IPv4 == nil {
		i.IPv4 = &IP{Enabled: new(false)}
	}
	if i.IPv6 == nil {
		i.IPv6 = &IP{Enabled: new(false)}
	}
}

func resolveType(d Interface, now *Interface) (Type, error) {
	switch {
	case now == nil && d.Type == "":
		return "", unfit("Interface %s does not exist; give it a type to have it made", d.Name)
	case now == nil && (d.Type == Ethernet || d.Type == Loopback):
		return "", unfit("Ethernet interface %s does not exists", d.Name)
	case now == nil && d.Type == VLANType && d.VLAN == nil:
		return "", invalid("Missing 'vlan.base-iface' for interface '%s'", d.Name)
	case now == nil && d.Type == VethPair && d.Veth == nil:
		return "", invalid("Interface %s is to be made and has no veth.peer", d.Name)
	case now == nil:
		return d.Type, nil
	// A card and one end of a pair whose other end is elsewhere look alike.
	case d.Type == "" || d.Type == now.Type, d.Type == Ethernet && (now.Type == VethPair || now.Type == Unknown), d.Type == VethPair && now.Type == Ethernet:
		return now.Type, nil
	}
	return "", unfit("Interface %s exists and is of type %s, not %s; remove it first with state: absent", d.Name, now.Type, d.Type)
}

// filterVLANs turns filtering on where ports ask for it. A kernel that cannot filter carries every tag, which is what the
// default asks for.
func (m *merger) filterVLANs(name string, b *Bridge) (*Bridge, error) {
	out := *b
	out.Port = slices.Clone(b.Port)
	filtered := false
	for n, p := range out.Port {
		if p.VLAN == nil {
			continue
		}
		if !m.host.VLANFiltering {
			if !p.VLAN.carriesAll() {
				return nil, unsupported("Linux Bridge %s: port %s selects VLANs, and this node's kernel has no VLAN filtering in bridges; leave vlan out to carry every tag, or use an ovs-bridge", name, p.Name)
			}
			out.Port[n].VLAN = nil
			continue
		}
		filtered = true
	}
	if filtered {
		options := BridgeOptions{}
		if b.Options != nil {
			options = *b.Options
		}
		options.VLANFiltering = new(true)
		out.Options = &options
	}
	return &out, nil
}

// joinByController adds interfaces that name their bridge to the bridge's ports.
func (m *merger) joinByController() error {
	for n := range m.target.Interfaces {
		i := &m.target.Interfaces[n]
		if i.Controller == nil || *i.Controller == "" || i.State == Absent {
			continue
		}
		bridge, err := m.bridgeOf(i.Name, *i.Controller)
		if err != nil {
			return err
		}
		i = &m.target.Interfaces[n] // bridgeOf may have moved them
		if !slices.ContainsFunc(bridge.Bridge.Port, func(p Port) bool { return p.Name == i.Name }) {
			bridge.Bridge.Port = append(slices.Clone(bridge.Bridge.Port), Port{Name: i.Name})
		}
	}
	return nil
}

// bridgeOf gives the target of a bridge with its complete list of ports.
func (m *merger) bridgeOf(port, name string) (*Interface, error) {
	for _, key := range []string{bridgeKey(name), name} {
		t, now := m.get(key), m.now[key]
		if t == nil && now == nil {
			continue
		}
		if t == nil {
			t = m.touch(now)
		}
		if t.Type != OVSBridge && t.Type != LinuxBridge || t.State == Absent {
			continue
		}
		if t.Bridge == nil {
			t.Bridge = &Bridge{}
		}
		if t.Bridge.Port == nil && now != nil && now.Bridge != nil {
			t.Bridge.Port = slices.Clone(now.Bridge.Port)
		}
		return t, nil
	}
	return nil, unfit("Interface %s has the controller %s, which is no bridge", port, name)
}

// connectPorts makes the listed ports of each bridge its ports, and those that it had no longer.
func (m *merger) connectPorts() error {
	for n := 0; n < len(m.target.Interfaces); n++ {
		i := m.target.Interfaces[n]
		if i.State == Absent || i.Bridge == nil || i.Bridge.Port == nil {
			continue
		}
		wanted := map[string]bool{}
		for _, p := range i.Bridge.Port {
			wanted[p.Name] = true
			if err := m.claim(i, p.Name); err != nil {
				return err
			}
		}
		m.release(i, wanted)
	}
	return nil
}

func (m *merger) claim(bridge Interface, name string) error {
	if bridge.Type == OVSBridge && name == bridge.Name {
		return nil // every bridge has it
	}
	if m.host.Owned != nil && m.host.Owned(name) {
		return unfit("Bridge %s: port %s belongs to pods, guests or the overlay", bridge.Name, name)
	}
	t, now := m.get(name), m.now[name]
	switch {
	case t == nil && now == nil:
		return unfit("Bridge %s: port %s does not exist, and the policy does not make it", bridge.Name, name)
	case t == nil:
		t = m.touch(now)
	case t.State == Absent:
		return unfit("Bridge %s: port %s is to be removed by the same policy", bridge.Name, name)
	}
	if now != nil && now.Patch != nil {
		return nil // OVN's
	}
	t.Controller = new(bridge.Name)
	if t.Type == OVSInterface {
		if bridge.Type != OVSBridge {
			return unfit("Bridge %s: an ovs-interface such as %s can be a port of an ovs-bridge only", bridge.Name, name)
		}
		return nil
	}
	if t.IPv4.wanted() || t.IPv6.wanted() {
		return unfit("Interface %s is a port of bridge %s and cannot hold IP addresses; give them to the bridge", name, bridge.Name)
	}
	t.State, t.IPv4, t.IPv6 = Up, &IP{Enabled: new(false)}, &IP{Enabled: new(false)}
	return nil
}

// release lets go of the ports that a bridge has and shall not have. Patch ports are OVN's.
func (m *merger) release(bridge Interface, wanted map[string]bool) {
	now := m.now[bridge.key()]
	if now == nil || now.Bridge == nil {
		return
	}
	for _, p := range now.Bridge.Port {
		port := m.now[p.Name]
		if wanted[p.Name] || port == nil || port.Patch != nil || (bridge.Type == OVSBridge && p.Name == bridge.Name) {
			continue
		}
		t := m.touch(port)
		if t.Controller == nil {
			t.Controller = new("")
		}
		if port.Type == OVSInterface && *t.Controller == "" {
			t.State = Absent // it exists as a port only
		}
	}
}

// releaseOfAbsent lets go of the ports of bridges that are removed.
func (m *merger) releaseOfAbsent() error {
	for n := 0; n < len(m.target.Interfaces); n++ {
		if i := m.target.Interfaces[n]; i.State == Absent && (i.Type == LinuxBridge || i.Type == OVSBridge) {
			m.release(i, nil)
		}
	}
	return nil
}

// checkReferences finds interfaces that hang on nothing.
func (m *merger) checkReferences() error {
	for _, i := range m.target.Interfaces {
		if i.State == Absent {
			continue
		}
		if i.Type == VLANType && i.VLAN != nil {
			base := m.get(i.VLAN.BaseIface)
			if (base == nil && m.now[i.VLAN.BaseIface] == nil) || (base != nil && base.State == Absent) {
				return unfit("Interface %s: its vlan.base-iface %s does not exist", i.Name, i.VLAN.BaseIface)
			}
		}
		if i.Type == OVSInterface && m.now[i.Name] == nil && i.Controller == nil && m.get(bridgeKey(i.Name)) == nil {
			return unfit("Interface %s is of type ovs-interface and a port of no ovs-bridge; list it there", i.Name)
		}
	}
	return nil
}

// mergeMappings changes the named mappings and keeps those of others. The result is never nil.
func mergeMappings(now, desired []BridgeMapping) []BridgeMapping {
	merged := map[string]string{}
	for _, m := range now {
		merged[m.Localnet] = m.Bridge
	}
	for _, m := range desired {
		if m.State == Absent {
			delete(merged, m.Localnet)
		} else {
			merged[m.Localnet] = m.Bridge
		}
	}
	out := []BridgeMapping{}
	for _, localnet := range slices.SortedFunc(maps.Keys(merged), strings.Compare) {
		out = append(out, BridgeMapping{Localnet: localnet, Bridge: merged[localnet]})
	}
	return out
}
