// Package nmstate holds the part of the nmstate document that virtual machines' networks need: its model, what is wrong with a
// document, what has to be done so that a node's network becomes what a document says, and what policies and enactments
// report. It computes only; it must not touch a device, a database or the API server.
package nmstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// State is a document: what a policy desires of a node's network (whatever is left out stays), or all that was observed of it.
type State struct {
	Hostname   *Hostname   `json:"hostname,omitempty"`
	DNS        *DNS        `json:"dns-resolver,omitempty"`
	Interfaces []Interface `json:"interfaces,omitzero"`
	Routes     *Routes     `json:"routes,omitempty"`
	RouteRules *RouteRules `json:"route-rules,omitempty"`
	OVN        *OVN        `json:"ovn,omitempty"`
	OVSDB      *OVSDB      `json:"ovs-db,omitempty"`
}

// Hostname is reported only.
type Hostname struct {
	Running string `json:"running,omitempty"`
	Config  string `json:"config,omitempty"`
}

// DNS is reported only.
type DNS struct {
	Running *Resolver `json:"running,omitempty"`
	Config  *Resolver `json:"config,omitempty"`
}

// Resolver says whom programs of the node ask for names.
type Resolver struct {
	Server  []string `json:"server,omitzero"`
	Search  []string `json:"search,omitzero"`
	Options []string `json:"options,omitempty"`
}

// RouteRules are not supported in desired states.
type RouteRules struct {
	Config []map[string]any `json:"config,omitzero"`
}

// Type is the kind of an interface.
type Type string

// Types of interfaces.
const (
	Ethernet     Type = "ethernet"
	LinuxBridge  Type = "linux-bridge"
	VethPair     Type = "veth"
	Dummy        Type = "dummy"
	VLANType     Type = "vlan"
	BondType     Type = "bond"
	OVSBridge    Type = "ovs-bridge"
	OVSInterface Type = "ovs-interface"
	Loopback     Type = "loopback"
	Unknown      Type = "unknown" // observed: nothing that a policy may make
)

// Values of an interface's state.
const (
	Up     = "up"
	Down   = "down"
	Absent = "absent"
	Ignore = "ignore"
)

// Interface is one network interface. In a desired state a nil field means: as it is.
type Interface struct {
	Name        string  `json:"name"`
	ProfileName string  `json:"profile-name,omitempty"` // accepted; there are no profiles here
	Type        Type    `json:"type,omitempty"`
	State       string  `json:"state,omitempty"`
	Description *string `json:"description,omitempty"`
	MTU         *int    `json:"mtu,omitempty"`
	MaxMTU      *int    `json:"max-mtu,omitempty"` // reported only, as the next
	MinMTU      *int    `json:"min-mtu,omitempty"`
	MAC         *string `json:"mac-address,omitempty"`
	CopyMACFrom string  `json:"copy-mac-from,omitempty"`
	Controller  *string `json:"controller,omitempty"` // the bridge that it is a port of; "" when of none
	IPv4        *IP     `json:"ipv4,omitempty"`
	IPv6        *IP     `json:"ipv6,omitempty"`
	LLDP        *Toggle `json:"lldp,omitempty"`

	Bridge   *Bridge        `json:"bridge,omitempty"`
	Veth     *Veth          `json:"veth,omitempty"`
	VLAN     *VLAN          `json:"vlan,omitempty"`
	Bond     *Bond          `json:"link-aggregation,omitempty"`
	Patch    *Patch         `json:"patch,omitempty"`
	Ethernet map[string]any `json:"ethernet,omitempty"`
}

// Toggle is a feature that may be on.
type Toggle struct {
	Enabled bool `json:"enabled"`
}

// IP is one family of an interface.
type IP struct {
	Enabled          *bool     `json:"enabled,omitempty"`
	DHCP             *bool     `json:"dhcp,omitempty"`
	Autoconf         *bool     `json:"autoconf,omitempty"`
	AddrGenMode      string    `json:"addr-gen-mode,omitempty"`
	Address          []Address `json:"address,omitzero"` // the complete list
	AutoDNS          *bool     `json:"auto-dns,omitempty"`
	AutoGateway      *bool     `json:"auto-gateway,omitempty"`
	AutoRoutes       *bool     `json:"auto-routes,omitempty"`
	AutoRouteTableID *int      `json:"auto-route-table-id,omitempty"`
	AutoRouteMetric  *int      `json:"auto-route-metric,omitempty"`
}

// Address is an address with the length of its subnet.
type Address struct {
	IP           string `json:"ip"`
	PrefixLength int    `json:"prefix-length"`
}

// prefix is for addresses that validate has seen.
func (a Address) prefix() netip.Prefix {
	ip, _ := netip.ParseAddr(a.IP)
	return netip.PrefixFrom(ip, a.PrefixLength)
}

// Bridge is what linux-bridge and ovs-bridge interfaces have.
type Bridge struct {
	Options *BridgeOptions `json:"options,omitempty"`
	Port    []Port         `json:"port,omitzero"` // the complete list
	// AllowExtraPatchPorts is accepted: OVN's patch ports are never taken off a bridge.
	AllowExtraPatchPorts *bool `json:"allow-extra-patch-ports,omitempty"`
}

// BridgeOptions are merged with those that the bridge has.
type BridgeOptions struct {
	STP *STP `json:"stp,omitempty"`
	// Of a linux-bridge.
	MACAgeingTime     *int   `json:"mac-ageing-time,omitempty"` // s
	GroupForwardMask  *int   `json:"group-forward-mask,omitempty"`
	MulticastSnooping *bool  `json:"multicast-snooping,omitempty"`
	VLANProtocol      string `json:"vlan-protocol,omitempty"`
	VLANDefaultPVID   *int   `json:"vlan-default-pvid,omitempty"`
	// VLANFiltering follows the ports: it is on when one of them has a vlan section.
	VLANFiltering *bool `json:"vlan-filtering,omitempty"`
	// Of an ovs-bridge.
	RSTP          *bool  `json:"rstp,omitempty"`
	McastSnooping *bool  `json:"mcast-snooping-enable,omitempty"`
	FailMode      string `json:"fail-mode,omitempty"`
	Datapath      string `json:"datapath,omitempty"`
}

// STP may be written as true or false, too.
type STP struct {
	Enabled      *bool `json:"enabled,omitempty"`
	ForwardDelay *int  `json:"forward-delay,omitempty"` // s
	HelloTime    *int  `json:"hello-time,omitempty"`    // s
	MaxAge       *int  `json:"max-age,omitempty"`       // s
	Priority     *int  `json:"priority,omitempty"`
}

// Port is a port of a bridge.
type Port struct {
	Name        string    `json:"name"`
	HairpinMode *bool     `json:"stp-hairpin-mode,omitempty"`
	PathCost    *int      `json:"stp-path-cost,omitempty"`
	Priority    *int      `json:"stp-priority,omitempty"`
	VLAN        *PortVLAN `json:"vlan,omitempty"`
	Bond        *Bond     `json:"link-aggregation,omitempty"`
}

// PortVLAN says which tags a port carries.
type PortVLAN struct {
	Mode         string     `json:"mode,omitempty"` // access or trunk
	Tag          *int       `json:"tag,omitempty"`
	EnableNative *bool      `json:"enable-native,omitempty"`
	TrunkTags    []TrunkTag `json:"trunk-tags,omitempty"`
}

// TrunkTag is one tag or a range.
type TrunkTag struct {
	ID      *int     `json:"id,omitempty"`
	IDRange *IDRange `json:"id-range,omitempty"`
}

// IDRange holds both ends.
type IDRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

func (t TrunkTag) bounds() (low, high int) {
	if t.IDRange != nil {
		return t.IDRange.Min, t.IDRange.Max
	}
	return *t.ID, *t.ID
}

// Veth names the other end of a pair.
type Veth struct {
	Peer string `json:"peer"`
}

// VLAN is an interface for one tag of another.
type VLAN struct {
	BaseIface string `json:"base-iface,omitempty"`
	ID        int    `json:"id"`
	Protocol  string `json:"protocol,omitempty"`
}

// Bond joins interfaces. Documents with one are checked, and then refused.
type Bond struct {
	Mode    string         `json:"mode,omitempty"`
	Port    []any          `json:"port,omitempty"`
	Options map[string]any `json:"options,omitempty"`
}

// Patch joins two ovs-bridges.
type Patch struct {
	Peer string `json:"peer"`
}

// Routes are those that the kernel has and those that were configured.
type Routes struct {
	Running []Route `json:"running,omitzero"`
	Config  []Route `json:"config,omitzero"`
}

// Route is one route. With state absent it stands for all that match its fields.
type Route struct {
	State            string `json:"state,omitempty"`
	Destination      string `json:"destination,omitempty"`
	NextHopInterface string `json:"next-hop-interface,omitempty"`
	NextHopAddress   string `json:"next-hop-address,omitempty"`
	Metric           *int   `json:"metric,omitempty"`
	TableID          *int   `json:"table-id,omitempty"`
}

// mainTable is where routes go that name no table.
const mainTable = 254

// Table is the number of the route's table.
func (r Route) Table() int {
	if r.TableID == nil || *r.TableID == 0 {
		return mainTable
	}
	return *r.TableID
}

// OVN is what the node's OVN controller is told.
type OVN struct {
	BridgeMappings []BridgeMapping `json:"bridge-mappings,omitzero"` // merged by localnet
}

// BridgeMapping says which bridge leads to a physical network.
type BridgeMapping struct {
	Localnet string `json:"localnet"`
	Bridge   string `json:"bridge,omitempty"`
	State    string `json:"state,omitempty"` // present or absent
}

// OVSDB holds settings of Open vSwitch as a whole; in a desired state null or "" removes a key.
type OVSDB struct {
	ExternalIDs map[string]*string `json:"external_ids,omitempty"`
	OtherConfig map[string]*string `json:"other_config,omitempty"`
}

// key tells an ovs-bridge from the interface of the same name that it has in the kernel.
func (i Interface) key() string {
	if i.Type == OVSBridge {
		return bridgeKey(i.Name)
	}
	return i.Name
}

func bridgeKey(name string) string { return "ovs-bridge/" + name }

// index finds interfaces by key.
func (s State) index() map[string]*Interface {
	found := map[string]*Interface{}
	for n := range s.Interfaces {
		found[s.Interfaces[n].key()] = &s.Interfaces[n]
	}
	return found
}

// Find returns an interface by its key's parts, nil when there is none.
func (s State) Find(name string, bridge bool) *Interface {
	n := slices.IndexFunc(s.Interfaces, func(i Interface) bool { return i.Name == name && (i.Type == OVSBridge) == bridge })
	if n < 0 {
		return nil
	}
	return &s.Interfaces[n]
}

// Mappings gives the present bridge mappings, sorted by localnet.
func (s State) Mappings() []BridgeMapping {
	if s.OVN == nil {
		return nil
	}
	return s.OVN.BridgeMappings
}

// FormatMappings is how Open vSwitch's database holds mappings.
func FormatMappings(mappings []BridgeMapping) string {
	texts := make([]string, 0, len(mappings))
	for _, m := range mappings {
		texts = append(texts, m.Localnet+":"+m.Bridge)
	}
	return strings.Join(texts, ",")
}

// ParseMappings reads what FormatMappings wrote, or somebody else did: entries that are none are left out.
func ParseMappings(text string) []BridgeMapping {
	var mappings []BridgeMapping
	for entry := range strings.SplitSeq(text, ",") {
		if localnet, bridge, ok := strings.Cut(strings.TrimSpace(entry), ":"); ok && localnet != "" && bridge != "" {
			mappings = append(mappings, BridgeMapping{Localnet: localnet, Bridge: bridge})
		}
	}
	slices.SortFunc(mappings, func(a, b BridgeMapping) int { return strings.Compare(a.Localnet, b.Localnet) })
	return mappings
}

// String is for operations and errors.
func (r Route) String() string {
	text := r.Destination
	if r.NextHopAddress != "" {
		text += " via " + r.NextHopAddress
	}
	text += " dev " + r.NextHopInterface
	if r.Metric != nil {
		text += fmt.Sprintf(" metric %d", *r.Metric)
	}
	if r.Table() != mainTable {
		text += fmt.Sprintf(" table %d", r.Table())
	}
	return text
}
