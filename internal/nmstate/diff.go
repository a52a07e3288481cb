package nmstate

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Diff lists the changes that bring a node from what it has to a target, in the order in which they must be made. Nothing is
// listed when the node is as it should be.
func Diff(current State, t Target) []Op {
	d := differ{now: current.index(), target: map[string]*Interface{}}
	for n := range t.Interfaces {
		d.target[t.Interfaces[n].key()] = &t.Interfaces[n]
	}
	for _, i := range t.Interfaces {
		d.diff(i)
	}
	d.routes(current, t)
	if t.Mappings != nil && FormatMappings(current.Mappings()) != FormatMappings(t.Mappings) {
		d.ops = append(d.ops, SetMappings{t.Mappings})
	}
	d.ovsdb(current.OVSDB, t)
	slices.SortStableFunc(d.ops, func(a, b Op) int { return int(a.phase() - b.phase()) })
	return d.ops
}

type differ struct {
	now, target map[string]*Interface
	ops         []Op
}

func (d *differ) add(ops ...Op) { d.ops = append(d.ops, ops...) }

// isOVS says whether a bridge of this name is Open vSwitch's.
func (d *differ) isOVS(bridge string) bool {
	return d.target[bridgeKey(bridge)] != nil || d.now[bridgeKey(bridge)] != nil
}

func (d *differ) diff(t Interface) {
	now := d.now[t.key()]
	if t.State == Absent {
		if now != nil {
			d.remove(*now)
		}
		return
	}
	if t.Type == OVSBridge {
		d.ovsBridge(t, now)
		return
	}
	if now == nil {
		now = &Interface{Name: t.Name, Type: t.Type, State: Down, IPv6: &IP{Enabled: new(true)}}
		if t.Type != OVSInterface {
			d.add(AddLink{t})
		}
	}
	d.controller(t, *now)
	d.attributes(t, *now)
	if t.Type == LinuxBridge {
		d.linuxBridge(t, *now)
	}
	d.addresses(t, *now)
}

func (d *differ) remove(now Interface) {
	controller := text(now.Controller)
	if controller != "" && controller != now.Name {
		d.detach(now.Name, controller)
	}
	switch now.Type {
	case OVSBridge:
		d.add(DeleteBridge{now.Name})
	case OVSInterface: // went with its port
	case LinuxBridge, VethPair, Dummy, VLANType, BondType:
		d.add(DeleteLink{now.Name})
	default: // a card cannot be removed: it is left without configuration
		if now.State == Up {
			d.add(SetLink{now.Name, false})
		}
		for _, a := range append(now.IPv4.prefixes(), now.IPv6.prefixes()...) {
			if !a.Addr().IsLinkLocalUnicast() {
				d.add(DeleteAddress{now.Name, a})
			}
		}
	}
}

func (d *differ) detach(device, bridge string) {
	if d.isOVS(bridge) {
		d.add(RemovePort{bridge, device})
	} else {
		d.add(Detach{device, bridge})
	}
}

func (d *differ) controller(t, now Interface) {
	if t.Controller == nil || *t.Controller == text(now.Controller) || (t.Type == OVSInterface && d.isOVS(t.Name)) {
		return
	}
	if old := text(now.Controller); old != "" {
		d.detach(t.Name, old)
	}
	switch bridge := *t.Controller; {
	case bridge == "":
	case d.isOVS(bridge):
		d.add(AddPort{bridge, t.Name, t.Type == OVSInterface})
	default:
		d.add(Attach{t.Name, bridge})
	}
}

func (d *differ) attributes(t, now Interface) {
	ovs := t.Type == OVSInterface
	if t.MTU != nil && !equal(t.MTU, now.MTU) {
		d.add(SetMTU{t.Name, *t.MTU, ovs})
	}
	if t.MAC != nil && !strings.EqualFold(*t.MAC, text(now.MAC)) {
		d.add(SetMAC{t.Name, strings.ToUpper(*t.MAC), ovs})
	}
	if t.Description != nil && *t.Description != text(now.Description) {
		d.add(SetAlias{t.Name, *t.Description})
	}
	if t.State != now.State && (t.State == Up || t.State == Down) {
		d.add(SetLink{t.Name, t.State == Up})
	}
}

func (d *differ) addresses(t, now Interface) {
	if t.IPv6 != nil {
		on := t.IPv6.Enabled == nil || *t.IPv6.Enabled
		if was := now.IPv6 != nil && isTrue(now.IPv6.Enabled); on != was {
			d.add(SetIPv6{t.Name, on})
		}
		if t.IPv6.Autoconf != nil && on && (now.IPv6 == nil || isTrue(now.IPv6.Autoconf) != *t.IPv6.Autoconf) {
			d.add(SetAutoconf{t.Name, *t.IPv6.Autoconf})
		}
	}
	d.family(t.Name, t.IPv4, now.IPv4)
	d.family(t.Name, t.IPv6, now.IPv6)
}

func (d *differ) family(name string, t, now *IP) {
	if t == nil {
		return
	}
	off := t.Enabled != nil && !*t.Enabled
	if t.Address == nil && !off {
		return
	}
	var want []netip.Prefix
	if !off {
		want = t.prefixes()
	}
	have := now.prefixes()
	for _, a := range have {
		// The kernel makes link-local addresses itself, and takes all when the family is turned off.
		if !slices.Contains(want, a) && !a.Addr().IsLinkLocalUnicast() && !(off && a.Addr().Is6()) {
			d.add(DeleteAddress{name, a})
		}
	}
	for _, a := range want {
		if !slices.Contains(have, a) {
			d.add(AddAddress{name, a})
		}
	}
}

func (ip *IP) prefixes() []netip.Prefix {
	if ip == nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range ip.Address {
		out = append(out, a.prefix())
	}
	return out
}

func (d *differ) linuxBridge(t, now Interface) {
	if t.Bridge == nil {
		return
	}
	have := now.Bridge
	if have == nil {
		have = &Bridge{}
	}
	if changed := t.Bridge.Options.changed(have.Options); changed != nil {
		d.add(SetBridge{t.Name, *changed})
	}
	for _, p := range t.Bridge.Port {
		was := Port{}
		if n := slices.IndexFunc(have.Port, func(h Port) bool { return h.Name == p.Name }); n >= 0 {
			was = have.Port[n]
		}
		if (p.HairpinMode != nil && !equal(p.HairpinMode, was.HairpinMode)) || (p.PathCost != nil && !equal(p.PathCost, was.PathCost)) ||
			(p.Priority != nil && !equal(p.Priority, was.Priority)) {
			d.add(SetPort{Port{Name: p.Name, HairpinMode: p.HairpinMode, PathCost: p.PathCost, Priority: p.Priority}})
		}
		if p.VLAN != nil && !slices.Equal(p.VLAN.Entries(), was.VLAN.Entries()) {
			d.add(SetVLANs{p.Name, p.VLAN.Entries()})
		}
	}
}

// changed gives the wanted options that differ, nil when none does.
func (o *BridgeOptions) changed(have *BridgeOptions) *BridgeOptions {
	if o == nil {
		return nil
	}
	if have == nil {
		have = &BridgeOptions{}
	}
	out := &BridgeOptions{
		MACAgeingTime:     unlessEqual(o.MACAgeingTime, have.MACAgeingTime),
		GroupForwardMask:  unlessEqual(o.GroupForwardMask, have.GroupForwardMask),
		MulticastSnooping: unlessEqual(o.MulticastSnooping, have.MulticastSnooping),
		VLANDefaultPVID:   unlessEqual(o.VLANDefaultPVID, have.VLANDefaultPVID),
		VLANFiltering:     unlessEqual(o.VLANFiltering, have.VLANFiltering),
		RSTP:              unlessEqual(o.RSTP, have.RSTP),
		McastSnooping:     unlessEqual(o.McastSnooping, have.McastSnooping),
		STP:               o.STP.changed(have.STP),
	}
	if o.FailMode != have.FailMode {
		out.FailMode = o.FailMode
	}
	if *out == (BridgeOptions{}) {
		return nil
	}
	return out
}

func (s *STP) changed(have *STP) *STP {
	if s == nil {
		return nil
	}
	if have == nil {
		have = &STP{}
	}
	out := &STP{Enabled: unlessEqual(s.Enabled, have.Enabled)}
	// Without the protocol its timers mean nothing, and some kernels refuse them.
	if isTrue(s.Enabled) || (s.Enabled == nil && isTrue(have.Enabled)) {
		out.ForwardDelay, out.HelloTime = unlessEqual(s.ForwardDelay, have.ForwardDelay), unlessEqual(s.HelloTime, have.HelloTime)
		out.MaxAge, out.Priority = unlessEqual(s.MaxAge, have.MaxAge), unlessEqual(s.Priority, have.Priority)
	}
	if *out == (STP{}) {
		return nil
	}
	return out
}

func (d *differ) ovsBridge(t Interface, now *Interface) {
	have := &Bridge{}
	if now == nil {
		d.add(AddBridge{t.Name})
	} else if now.Bridge != nil {
		have = now.Bridge
	}
	if t.Bridge == nil {
		return
	}
	if changed := t.Bridge.Options.changed(have.Options); changed != nil {
		d.add(SetOVSBridge{t.Name, *changed})
	}
	for _, p := range t.Bridge.Port {
		was := (*PortVLAN)(nil)
		if n := slices.IndexFunc(have.Port, func(h Port) bool { return h.Name == p.Name }); n >= 0 {
			was = have.Port[n].VLAN
		}
		if p.VLAN != nil && describe(p.VLAN) != describe(was) {
			d.add(SetOVSPort{p.Name, *p.VLAN})
		}
	}
}

func (d *differ) routes(current State, t Target) {
	var config, running []Route
	if current.Routes != nil {
		config, running = current.Routes.Config, current.Routes.Running
	}
	gone := map[string]bool{}
	for _, r := range config {
		if slices.ContainsFunc(t.DeleteRoutes, func(pattern Route) bool { return pattern.matches(r) }) &&
			!slices.ContainsFunc(t.AddRoutes, func(wanted Route) bool { return wanted.matches(r) }) {
			d.add(DeleteRoute{r})
			gone[r.String()] = true
		}
	}
	for _, wanted := range t.AddRoutes {
		if !slices.ContainsFunc(slices.Concat(config, running), func(r Route) bool { return wanted.matches(r) && !gone[r.String()] }) {
			d.add(AddRoute{wanted})
		}
	}
}

// matches says whether a route has what the pattern names.
func (r Route) matches(other Route) bool {
	return (r.Destination == "" || samePrefix(r.Destination, other.Destination)) &&
		(r.NextHopInterface == "" || r.NextHopInterface == other.NextHopInterface) &&
		(r.NextHopAddress == "" || sameAddress(r.NextHopAddress, other.NextHopAddress)) &&
		(r.Metric == nil || equal(r.Metric, other.Metric)) &&
		(r.TableID == nil && (r.State == Absent || other.Table() == mainTable) || r.TableID != nil && r.Table() == other.Table())
}

func samePrefix(a, b string) bool {
	first, err1 := netip.ParsePrefix(a)
	second, err2 := netip.ParsePrefix(b)
	return err1 == nil && err2 == nil && first.Masked() == second.Masked()
}

func sameAddress(a, b string) bool {
	first, err1 := netip.ParseAddr(a)
	second, err2 := netip.ParseAddr(b)
	return err1 == nil && err2 == nil && first == second
}

func (d *differ) ovsdb(now *OVSDB, t Target) {
	if now == nil {
		now = &OVSDB{}
	}
	external, other := changedKeys(now.ExternalIDs, t.ExternalIDs), changedKeys(now.OtherConfig, t.OtherConfig)
	if len(external)+len(other) > 0 {
		d.add(SetOVSDB{external, other})
	}
}

func changedKeys(now, wanted map[string]*string) map[string]*string {
	var out map[string]*string
	for key, value := range maps.All(wanted) {
		if text(now[key]) != text(value) {
			if out == nil {
				out = map[string]*string{}
			}
			out[key] = value
		}
	}
	return out
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func equal[T comparable](a, b *T) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}

func unlessEqual[T comparable](want, have *T) *T {
	if want == nil || equal(want, have) {
		return nil
	}
	return want
}

// describe is the text of a part of a document.
func describe(part any) string {
	data, err := json.Marshal(part)
	if err != nil {
		return err.Error() // plain values always have one
	}
	return string(data)
}
