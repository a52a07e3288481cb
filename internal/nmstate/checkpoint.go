package nmstate

import (
	"slices"
	"strings"
	"time"
)

// Checkpoint is what must be known to undo a change: the node's network before it, and what the change touches.
type Checkpoint struct {
	Policy     string    `json:"policy"`
	Generation int64     `json:"generation"`
	Taken      time.Time `json:"taken"`
	Before     State     `json:"before"`
	Touched    []string  `json:"touched,omitempty"` // interfaces, as Target keys them
	Mappings   bool      `json:"mappings,omitempty"`
	External   []string  `json:"externalIDs,omitempty"`
	Other      []string  `json:"otherConfig,omitempty"`
	Devices    []string  `json:"devices,omitempty"` // whose routes are put back
}

// NewCheckpoint remembers what a target will change.
func NewCheckpoint(policy string, generation int64, before State, t Target) Checkpoint {
	c := Checkpoint{Policy: policy, Generation: generation, Before: before, Mappings: t.Mappings != nil}
	for _, i := range t.Interfaces {
		c.touch(i)
		for _, other := range before.Interfaces {
			if i.State == Absent && other.goesWith(i) {
				c.touch(other)
			}
		}
	}
	for _, r := range slices.Concat(t.AddRoutes, t.DeleteRoutes) {
		if r.NextHopInterface == "" {
			// Any device's routes may go.
			for _, i := range before.Interfaces {
				c.Devices = append(c.Devices, i.Name)
			}
		} else {
			c.Devices = append(c.Devices, r.NextHopInterface)
		}
	}
	slices.Sort(c.Devices)
	c.Devices = slices.Compact(c.Devices)
	for key := range t.ExternalIDs {
		c.External = append(c.External, key)
	}
	for key := range t.OtherConfig {
		c.Other = append(c.Other, key)
	}
	return c
}

func (c *Checkpoint) touch(i Interface) {
	if slices.Contains(c.Touched, i.key()) {
		return
	}
	c.Touched = append(c.Touched, i.key())
	if i.Type != OVSBridge {
		c.Devices = append(c.Devices, i.Name)
	}
}

// goesWith says whether an interface vanishes when another is removed.
func (i Interface) goesWith(other Interface) bool {
	return (other.Type == OVSBridge && i.Name == other.Name) || (i.Veth != nil && i.Veth.Peer == other.Name) ||
		(i.VLAN != nil && i.VLAN.BaseIface == other.Name)
}

// Target is how the node was.
func (c Checkpoint) Target(current State) Target {
	t := Target{}
	was, now := c.Before.index(), current.index()
	for _, key := range c.Touched {
		if i := was[key]; i != nil {
			t.Interfaces = append(t.Interfaces, i.restored())
		} else if i := now[key]; i != nil {
			t.Interfaces = append(t.Interfaces, Interface{Name: i.Name, Type: i.Type, State: Absent})
		}
	}
	c.restoreRoutes(current, &t)
	if c.Mappings {
		t.Mappings = append([]BridgeMapping{}, c.Before.Mappings()...)
	}
	if c.Before.OVSDB != nil {
		t.ExternalIDs, t.OtherConfig = pick(c.Before.OVSDB.ExternalIDs, c.External), pick(c.Before.OVSDB.OtherConfig, c.Other)
	}
	return t
}

// restored says everything of an interface, so that nothing stays as it is.
func (i Interface) restored() Interface {
	if i.Controller == nil && i.Type != OVSBridge {
		i.Controller = new("")
	}
	if i.Description == nil && i.Type != OVSBridge {
		i.Description = new("")
	}
	for _, ip := range []**IP{&i.IPv4, &i.IPv6} {
		if *ip != nil && (*ip).Address == nil {
			full := **ip
			full.Address = []Address{}
			*ip = &full
		}
	}
	return i
}

func (c Checkpoint) restoreRoutes(current State, t *Target) {
	through := func(r Route) bool { return slices.Contains(c.Devices, r.NextHopInterface) }
	var had []Route
	if c.Before.Routes != nil {
		for _, r := range c.Before.Routes.Config {
			if through(r) {
				had = append(had, r)
			}
		}
	}
	t.AddRoutes = had
	if current.Routes == nil {
		return
	}
	for _, r := range current.Routes.Config {
		if through(r) && !slices.ContainsFunc(had, func(h Route) bool { return h.String() == r.String() }) {
			r.State = Absent
			t.DeleteRoutes = append(t.DeleteRoutes, r)
		}
	}
}

func pick(values map[string]*string, keys []string) map[string]*string {
	out := map[string]*string{}
	for _, key := range keys {
		out[key] = values[key]
	}
	return out
}

// Describe lists changes, for logs and errors.
func Describe(ops []Op) string {
	var lines []string
	for _, op := range ops {
		lines = append(lines, op.String())
	}
	return strings.Join(lines, "; ")
}
