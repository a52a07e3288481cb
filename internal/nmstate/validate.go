package nmstate

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// maxName is the kernel's limit for names of interfaces.
const maxName = 15

// validate checks what needs no node.
func (s State) validate() error {
	if err := s.validateReportedOnly(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, i := range s.Interfaces {
		if err := i.validate(); err != nil {
			return err
		}
		if seen[i.key()] {
			return invalid("Interface %s is listed twice; merge the two entries", i.Name)
		}
		seen[i.key()] = true
	}
	if err := s.validateControllers(); err != nil {
		return err
	}
	if err := s.validateRoutes(); err != nil {
		return err
	}
	return s.validateOVS()
}

// validateReportedOnly refuses what belongs to somebody else on a node.
func (s State) validateReportedOnly() error {
	switch {
	case s.Hostname != nil:
		return unsupported("hostname: a node's name is that of its Kubernetes node; leave it out")
	case s.DNS != nil && s.DNS.Config != nil && len(s.DNS.Config.Server)+len(s.DNS.Config.Search)+len(s.DNS.Config.Options) > 0:
		return unsupported("dns-resolver: the node's resolver is not changed; leave it out and write the node's resolv.conf")
	case s.RouteRules != nil && len(s.RouteRules.Config) > 0:
		return unsupported("route-rules: only routes are supported; leave the rules out")
	}
	return nil
}

func (i Interface) validate() error {
	switch {
	case i.Name == "":
		return invalid("an interface has no name")
	case len(i.Name) > maxName || strings.ContainsAny(i.Name, "/ :\t\n") || i.Name == "." || i.Name == "..":
		return invalid("%q cannot name an interface; use 1 to %d characters without space, slash and colon", i.Name, maxName)
	case !slices.Contains([]string{Up, Down, Absent, Ignore}, i.State):
		return invalid("Interface %s has the state %q; use up, down, absent or ignore", i.Name, i.State)
	case i.State == Absent || i.State == Ignore:
		return nil
	}
	if err := i.validateType(); err != nil {
		return err
	}
	if i.MAC != nil {
		mac, err := net.ParseMAC(*i.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("Interface %s has the mac-address %q; write a unicast address such as 02:00:00:00:00:01", i.Name, *i.MAC)
		}
	}
	if i.MTU != nil && (*i.MTU < 68 || *i.MTU > 65535) {
		return invalid("Interface %s has the mtu %d; choose 68 to 65535", i.Name, *i.MTU)
	}
	if i.LLDP != nil && i.LLDP.Enabled {
		return unsupported("Interface %s: lldp is not supported", i.Name)
	}
	if len(i.Ethernet) > 0 {
		return unsupported("Interface %s: settings of the card below ethernet (speed, sr-iov) are not supported", i.Name)
	}
	if err := i.IPv4.validate(i.Name, "ipv4"); err != nil {
		return err
	}
	return i.IPv6.validate(i.Name, "ipv6")
}

func (i Interface) validateType() error {
	switch i.Type {
	case "", Ethernet, Dummy, OVSInterface, Loopback:
	case LinuxBridge:
		return i.Bridge.validateLinux(i.Name)
	case OVSBridge:
		if i.MAC != nil || i.CopyMACFrom != "" {
			return invalid("OVS Bridge %s can not hold MAC address, please set MAC address on OVS internal interface instead", i.Name)
		}
		if i.IPv4.wanted() || i.IPv6.wanted() {
			return invalid("OVS Bridge %s can not hold IP addresses; give them to an ovs-interface that is one of its ports", i.Name)
		}
		return i.Bridge.validateOVS(i.Name)
	case VethPair:
		if i.Veth != nil && (i.Veth.Peer == "" || i.Veth.Peer == i.Name || len(i.Veth.Peer) > maxName) {
			return invalid("Interface %s: veth.peer %q cannot name the other end", i.Name, i.Veth.Peer)
		}
	case VLANType:
		if i.VLAN != nil && i.VLAN.BaseIface == "" {
			return invalid("Missing 'vlan.base-iface' for interface '%s'", i.Name)
		}
		if i.VLAN != nil && (i.VLAN.ID < 1 || i.VLAN.ID > 4094) {
			return invalid("Interface %s has the vlan.id %d; choose 1 to 4094", i.Name, i.VLAN.ID)
		}
		if i.VLAN != nil && !slices.Contains([]string{"", "802.1q", "802.1ad"}, i.VLAN.Protocol) {
			return invalid("Interface %s has the vlan.protocol %q; use 802.1q or 802.1ad", i.Name, i.VLAN.Protocol)
		}
	case BondType:
		if i.Bond == nil || i.Bond.Mode == "" {
			return invalid("Bond mode is mandatory for new bond interface: %s", i.Name)
		}
		return unsupported("Interface %s: bonds are not supported; give the bridge one card", i.Name)
	default:
		return unsupported("Interface %s: type %q is not supported; types are ethernet, linux-bridge, veth, dummy, vlan, ovs-bridge and ovs-interface", i.Name, i.Type)
	}
	if i.Bridge != nil {
		return invalid("Interface %s has a bridge section, but is not of type linux-bridge or ovs-bridge", i.Name)
	}
	if i.Patch != nil {
		return unsupported("Interface %s: patch ports are made by OVN; see ovn.bridge-mappings", i.Name)
	}
	return nil
}

func (b *Bridge) validateLinux(name string) error {
	if b == nil {
		return nil
	}
	if o := b.Options; o != nil && (o.RSTP != nil || o.McastSnooping != nil || o.FailMode != "" || o.Datapath != "") {
		return invalid("Linux Bridge %s has options of an ovs-bridge (rstp, mcast-snooping-enable, fail-mode, datapath)", name)
	}
	if o := b.Options; o != nil && o.VLANProtocol != "" && o.VLANProtocol != "802.1q" {
		return unsupported("Linux Bridge %s: vlan-protocol %s is not supported; use 802.1q", name, o.VLANProtocol)
	}
	return b.validatePorts(name)
}

func (b *Bridge) validateOVS(name string) error {
	if b == nil {
		return nil
	}
	if o := b.Options; o != nil {
		if o.MACAgeingTime != nil || o.GroupForwardMask != nil || o.MulticastSnooping != nil || o.VLANProtocol != "" || o.VLANDefaultPVID != nil {
			return invalid("OVS Bridge %s has options of a linux-bridge (mac-ageing-time, group-forward-mask, multicast-snooping, vlan-…)", name)
		}
		if !slices.Contains([]string{"", "secure", "standalone"}, o.FailMode) {
			return invalid("OVS Bridge %s has the fail-mode %q; use secure or standalone", name, o.FailMode)
		}
	}
	return b.validatePorts(name)
}

func (b *Bridge) validatePorts(name string) error {
	seen := map[string]bool{}
	for _, p := range b.Port {
		switch {
		case p.Name == "":
			return invalid("Bridge %s has a port without name", name)
		case p.Bond != nil:
			return unsupported("Bridge %s: port %s is a bond; bonds are not supported", name, p.Name)
		case seen[p.Name]:
			return invalid("Bridge %s lists port %s twice", name, p.Name)
		}
		seen[p.Name] = true
		if err := p.VLAN.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (v *PortVLAN) validate() error {
	if v == nil {
		return nil
	}
	native := v.EnableNative != nil && *v.EnableNative
	switch {
	case v.Mode != "access" && v.Mode != "trunk":
		return invalid("Bridge VLAN filtering mode %q is unknown; use access or trunk", v.Mode)
	case v.Tag != nil && (*v.Tag < 0 || *v.Tag > 4094):
		return invalid("Bridge VLAN filtering tag %d is out of range; choose 0 to 4094", *v.Tag)
	case v.Mode == "access" && native:
		return invalid("Bridge VLAN filtering `enable-native: true` cannot be set in access mode")
	case v.Mode == "access" && len(v.TrunkTags) > 0:
		return invalid("Bridge VLAN filtering access mode cannot have trunk-tags defined")
	case v.Mode == "trunk" && len(v.TrunkTags) == 0:
		return invalid("Bridge VLAN filtering trunk mode cannot have empty trunk-tags")
	case v.Mode == "trunk" && v.Tag != nil && *v.Tag != 0 && !native:
		return invalid("Bridge VLAN filtering `tag` cannot be use in trunk mode without `enable-native`")
	}
	return validateTrunk(v.TrunkTags)
}

func validateTrunk(tags []TrunkTag) error {
	taken := [4096]bool{}
	for _, t := range tags {
		if (t.ID == nil) == (t.IDRange == nil) {
			return invalid("Bridge VLAN filtering trunk-tags need either id or id-range")
		}
		low, high := t.bounds()
		if low < 1 || high > 4094 || low > high {
			return invalid("Bridge VLAN filtering trunk-tags %d to %d are out of range; choose 1 to 4094", low, high)
		}
		for id := low; id <= high; id++ {
			if taken[id] {
				return invalid("Bridge VLAN filtering trunk-tags overlap at %d", id)
			}
			taken[id] = true
		}
	}
	return nil
}

// wanted says whether the family is to carry anything.
func (ip *IP) wanted() bool {
	return ip != nil && (ip.Enabled == nil || *ip.Enabled) && (len(ip.Address) > 0 || isTrue(ip.DHCP) || isTrue(ip.Autoconf) || isTrue(ip.Enabled))
}

func isTrue(b *bool) bool { return b != nil && *b }

func (ip *IP) validate(name, family string) error {
	if ip == nil {
		return nil
	}
	if isTrue(ip.DHCP) {
		return unsupported("Interface %s: %s.dhcp is not supported; give it addresses, or none", name, family)
	}
	if family == "ipv4" && ip.Autoconf != nil {
		return invalid("Interface %s: autoconf is a property of ipv6", name)
	}
	for _, a := range ip.Address {
		addr, err := netip.ParseAddr(a.IP)
		switch {
		case err != nil || addr.Zone() != "":
			return invalid("Interface %s has the address %q, which is none", name, a.IP)
		case family == "ipv4" && addr.Is6():
			return invalid("Got IPv6 address %s in ipv4 config section", a.IP)
		case family == "ipv6" && addr.Is4():
			return invalid("Got IPv4 address %s in ipv6 config section", a.IP)
		case a.PrefixLength < 1 || a.PrefixLength > addr.BitLen():
			return invalid("Interface %s: address %s has the prefix-length %d; choose 1 to %d", name, a.IP, a.PrefixLength, addr.BitLen())
		}
	}
	return nil
}

// validateControllers finds ports that two bridges claim.
func (s State) validateControllers() error {
	claimed := map[string]string{}
	for _, i := range s.Interfaces {
		if i.State == Absent || i.State == Ignore || i.Bridge == nil {
			continue
		}
		for _, p := range i.Bridge.Port {
			if other, ok := claimed[p.Name]; ok {
				return invalid("Port %s is overbooked by two controller: %s, %s", p.Name, other, i.Name)
			}
			claimed[p.Name] = i.Name
		}
	}
	for _, i := range s.Interfaces {
		if i.Controller != nil && claimed[i.Name] != "" && claimed[i.Name] != *i.Controller {
			return invalid("Port %s is overbooked by two controller: %s, %s", i.Name, claimed[i.Name], *i.Controller)
		}
	}
	return nil
}

func (s State) validateRoutes() error {
	if s.Routes == nil {
		return nil
	}
	for _, r := range s.Routes.Config {
		if !slices.Contains([]string{"", Absent}, r.State) {
			return invalid("route to %s has the state %q; leave it out, or use absent", r.Destination, r.State)
		}
		if r.Destination != "" {
			if _, err := netip.ParsePrefix(r.Destination); err != nil {
				return invalid("route destination %q is no network; write one such as 10.0.0.0/8", r.Destination)
			}
		}
		if r.NextHopAddress != "" {
			if _, err := netip.ParseAddr(r.NextHopAddress); err != nil {
				return invalid("route to %s: next-hop-address %q is no address", r.Destination, r.NextHopAddress)
			}
		}
		if r.State == Absent {
			continue
		}
		if r.Destination == "" || r.NextHopInterface == "" {
			return invalid("a route needs destination and next-hop-interface; this one has %q and %q", r.Destination, r.NextHopInterface)
		}
	}
	return nil
}

// reserved are keys of Open vSwitch's database that join the node to the cluster.
func reserved(key string) bool {
	return key == "system-id" || key == "hostname" || strings.HasPrefix(key, "ovn-") || strings.HasPrefix(key, "ovs-")
}

func (s State) validateOVS() error {
	if s.OVN != nil {
		seen := map[string]bool{}
		for _, m := range s.OVN.BridgeMappings {
			switch {
			case m.Localnet == "" || strings.ContainsAny(m.Localnet, ",:"):
				return invalid("`localnet` key %q must be a name without comma and colon", m.Localnet)
			case seen[m.Localnet]:
				return invalid("Found duplicate `localnet` key %s", m.Localnet)
			case !slices.Contains([]string{"", "present", Absent}, m.State):
				return invalid("mapping for `localnet` key %s has the state %q; use present or absent", m.Localnet, m.State)
			case m.Bridge == "" && m.State != Absent:
				return invalid("mapping for `localnet` key %s missing the `bridge` attribute", m.Localnet)
			case strings.ContainsAny(m.Bridge, ",:"):
				return invalid("mapping for `localnet` key %s: %q cannot name a bridge", m.Localnet, m.Bridge)
			}
			seen[m.Localnet] = true
		}
	}
	if s.OVSDB != nil {
		for key := range s.OVSDB.ExternalIDs {
			if reserved(key) {
				return invalid("ovs-db: external_ids:%s joins the node to the cluster and is not a policy's to change (for bridge mappings see ovn.bridge-mappings)", key)
			}
		}
	}
	return nil
}
