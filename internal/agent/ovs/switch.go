package ovs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"patchbay/internal/agent/ovs/vswitch"
)

// Bridge is a bridge of the node's switch, with its ports.
type Bridge struct {
	Name                     string
	Datapath                 Datapath
	FailMode                 string // secure, standalone or empty
	STP, RSTP, McastSnooping bool
	Ports                    []BridgePort
}

// BridgePort is a port of a Bridge.
type BridgePort struct {
	Name   string
	Type   string // of its interface: empty for a device, "internal", "patch" …
	Peer   string // of a patch port
	Owner  string // who plugged it, when one of the agent's parts did
	Mode   string // of its VLANs: empty, access, trunk, native-untagged …
	Tag    *int
	Trunks []int
}

// BridgeOptions are changes of a bridge; nil ones stay.
type BridgeOptions struct {
	STP, RSTP, McastSnooping *bool
	FailMode                 *string
}

// Bridges lists the bridges of the switch.
func (c *Client) Bridges() []Bridge {
	var rows []*vswitch.Bridge
	_ = c.db.List(context.Background(), &rows) // fails only for types that are not in the model
	ports, interfaces := c.byUUID()
	bridges := make([]Bridge, 0, len(rows))
	for _, row := range rows {
		b := Bridge{Name: row.Name, Datapath: datapathOf(row), STP: row.STPEnable, RSTP: row.RSTPEnable, McastSnooping: row.McastSnoopingEnable}
		if row.FailMode != nil {
			b.FailMode = *row.FailMode
		}
		for _, uuid := range row.Ports {
			if port := ports[uuid]; port != nil {
				b.Ports = append(b.Ports, describePort(port, interfaces))
			}
		}
		slices.SortFunc(b.Ports, func(a, b BridgePort) int { return strings.Compare(a.Name, b.Name) })
		bridges = append(bridges, b)
	}
	slices.SortFunc(bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	return bridges
}

func (c *Client) byUUID() (map[string]*vswitch.Port, map[string]*vswitch.Interface) {
	var rows []*vswitch.Port
	_ = c.db.List(context.Background(), &rows)
	ports, interfaces := map[string]*vswitch.Port{}, map[string]*vswitch.Interface{}
	for _, p := range rows {
		ports[p.UUID] = p
	}
	for _, i := range c.interfaces() {
		interfaces[i.UUID] = i
	}
	return ports, interfaces
}

func describePort(p *vswitch.Port, interfaces map[string]*vswitch.Interface) BridgePort {
	out := BridgePort{Name: p.Name, Tag: p.Tag, Trunks: slices.Sorted(slices.Values(p.Trunks))}
	if p.VLANMode != nil {
		out.Mode = *p.VLANMode
	}
	for _, uuid := range p.Interfaces {
		if i := interfaces[uuid]; i != nil {
			out.Type, out.Peer, out.Owner = i.Type, i.Options["peer"], i.ExternalIDs[keyOwner]
		}
	}
	return out
}

// AddBridge makes a bridge on the datapath that the integration bridge runs on. One that exists stays.
func (c *Client) AddBridge(ctx context.Context, name string) error {
	if c.bridge(name) != nil {
		return nil
	}
	root, err := c.root()
	if err != nil {
		return err
	}
	datapath := Datapath(root.ExternalIDs["ovn-bridge-datapath-type"])
	if integration := c.bridge(IntegrationBridge); integration != nil {
		datapath = datapathOf(integration)
	} else if datapath == "" {
		datapath = offeredDatapath()
	}
	return c.addBridge(ctx, root, name, datapath, nil)
}

// DeleteBridge removes a bridge with its ports. One that is not there is no error.
func (c *Client) DeleteBridge(ctx context.Context, name string) error {
	bridge := c.bridge(name)
	if bridge == nil {
		return nil
	}
	root, err := c.root()
	if err != nil {
		return err
	}
	operations, err := c.db.Where(root).Mutate(root, model.Mutation{
		Field: &root.Bridges, Mutator: ovsdb.MutateOperationDelete, Value: []string{bridge.UUID}})
	if err != nil {
		return err
	}
	return c.transact(ctx, "remove bridge "+name, operations)
}

// AddPort makes a device a port of a bridge; an internal one is made by the switch. A port that is there stays.
func (c *Client) AddPort(ctx context.Context, bridgeName, name string, internal bool) error {
	bridge := c.bridge(bridgeName)
	if bridge == nil {
		return fmt.Errorf("add port %s: the node has no bridge %s", name, bridgeName)
	}
	if c.port(bridge, name) != nil {
		return nil
	}
	iface := &vswitch.Interface{UUID: "iface", Name: name}
	if internal {
		iface.Type = "internal"
	}
	operations, err := c.create(iface, &vswitch.Port{UUID: "port", Name: name, Interfaces: []string{"iface"}})
	if err != nil {
		return err
	}
	attach, err := c.db.Where(bridge).Mutate(bridge, model.Mutation{
		Field: &bridge.Ports, Mutator: ovsdb.MutateOperationInsert, Value: []string{"port"}})
	if err != nil {
		return err
	}
	return c.transact(ctx, fmt.Sprintf("add port %s to bridge %s", name, bridgeName), append(operations, attach...))
}

// DeletePort takes a port off a bridge. One that is not there is no error.
func (c *Client) DeletePort(ctx context.Context, bridgeName, name string) error {
	bridge := c.bridge(bridgeName)
	if bridge == nil {
		return nil
	}
	port := c.port(bridge, name)
	if port == nil {
		return nil
	}
	operations, err := c.db.Where(bridge).Mutate(bridge, model.Mutation{
		Field: &bridge.Ports, Mutator: ovsdb.MutateOperationDelete, Value: []string{port.UUID}})
	if err != nil {
		return err
	}
	return c.transact(ctx, fmt.Sprintf("take port %s off bridge %s", name, bridgeName), operations)
}

func (c *Client) port(bridge *vswitch.Bridge, name string) *vswitch.Port {
	var ports []*vswitch.Port
	err := c.db.WhereCache(func(p *vswitch.Port) bool {
		return p.Name == name && slices.Contains(bridge.Ports, p.UUID)
	}).List(context.Background(), &ports)
	if err != nil || len(ports) == 0 {
		return nil
	}
	return ports[0]
}

// SetBridge changes options of a bridge.
func (c *Client) SetBridge(ctx context.Context, name string, o BridgeOptions) error {
	bridge := c.bridge(name)
	if bridge == nil {
		return fmt.Errorf("set options of bridge %s: the node has none of that name", name)
	}
	var columns []any
	set := func(column *bool, value *bool) {
		if value != nil {
			*column = *value
			columns = append(columns, column)
		}
	}
	set(&bridge.STPEnable, o.STP)
	set(&bridge.RSTPEnable, o.RSTP)
	set(&bridge.McastSnoopingEnable, o.McastSnooping)
	if o.FailMode != nil {
		bridge.FailMode = o.FailMode
		if *o.FailMode == "" {
			bridge.FailMode = nil
		}
		columns = append(columns, &bridge.FailMode)
	}
	if len(columns) == 0 {
		return nil
	}
	operations, err := c.db.Where(bridge).Update(bridge, columns...)
	if err != nil {
		return err
	}
	return c.transact(ctx, "set options of bridge "+name, operations)
}

// SetVLANs sets the tags of a port, of whatever bridge. Tag nil and no trunks mean all.
func (c *Client) SetVLANs(ctx context.Context, name, mode string, tag *int, trunks []int) error {
	port := &vswitch.Port{Name: name}
	if err := c.db.Get(ctx, port); err != nil {
		return fmt.Errorf("set VLANs of port %s: %w", name, err)
	}
	port.Tag, port.Trunks, port.VLANMode = tag, trunks, nil
	if mode != "" {
		port.VLANMode = &mode
	}
	operations, err := c.db.Where(port).Update(port, &port.Tag, &port.Trunks, &port.VLANMode)
	if err != nil {
		return err
	}
	return c.transact(ctx, "set VLANs of port "+name, operations)
}

// SetInterface sets what the switch decides about a device of its own: the address and the MTU. Empty and 0 stay.
func (c *Client) SetInterface(ctx context.Context, name, mac string, mtu int) error {
	iface := c.iface(name)
	if iface == nil {
		return fmt.Errorf("set up interface %s: the switch has none of that name", name)
	}
	var columns []any
	if mac != "" {
		iface.MAC = &mac
		columns = append(columns, &iface.MAC)
	}
	if mtu != 0 {
		iface.MTURequest = &mtu
		columns = append(columns, &iface.MTURequest)
	}
	if len(columns) == 0 {
		return nil
	}
	operations, err := c.db.Where(iface).Update(iface, columns...)
	if err != nil {
		return err
	}
	return c.transact(ctx, "set up interface "+name, operations)
}

// Settings are those of the switch as a whole.
func (c *Client) Settings() (externalIDs, otherConfig map[string]string, err error) {
	root, err := c.root()
	if err != nil {
		return nil, nil, err
	}
	return maps.Clone(root.ExternalIDs), maps.Clone(root.OtherConfig), nil
}

// ChangeSettings sets keys of the switch as a whole; those without value are removed. Other keys stay, whoever set them.
func (c *Client) ChangeSettings(ctx context.Context, externalIDs, otherConfig map[string]string) error {
	root, err := c.root()
	if err != nil {
		return err
	}
	var mutations []model.Mutation
	change := func(column *map[string]string, values map[string]string) {
		if len(values) == 0 {
			return
		}
		// Insertion keeps the value of a key that is there.
		mutations = append(mutations, model.Mutation{Field: column, Mutator: ovsdb.MutateOperationDelete, Value: slices.Sorted(maps.Keys(values))})
		insert := maps.Clone(values)
		maps.DeleteFunc(insert, func(_, value string) bool { return value == "" })
		if len(insert) > 0 {
			mutations = append(mutations, model.Mutation{Field: column, Mutator: ovsdb.MutateOperationInsert, Value: insert})
		}
	}
	change(&root.ExternalIDs, externalIDs)
	change(&root.OtherConfig, otherConfig)
	if len(mutations) == 0 {
		return nil
	}
	operations, err := c.db.Where(root).Mutate(root, mutations...)
	if err != nil {
		return err
	}
	return c.transact(ctx, "change settings of the switch", operations)
}
