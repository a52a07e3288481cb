package ovs

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"patchbay/internal/agent/ovs/vswitch"
)

// Keys of an interface's external_ids. ovn-controller reads the first two and writes the third; the others are ours.
const (
	keyPort      = "iface-id"
	keyVersion   = "iface-id-ver"
	keyInstalled = "ovn-installed"
	keyOwner     = "patchbay-owner"
)

// Port plugs a device into the integration bridge for a logical switch port.
type Port struct {
	Name    string // of the device in the node's namespace
	Logical string // logical switch port (iface-id)
	Version string // iface-id-ver: the pod's UID; empty when the logical port has none
	// Owner says whose device it is and of which incarnation ("cni/<container>/eth0"). Whoever plugs must be able to tell
	// from it what is left over; ports of other owners are none of its business.
	Owner string
	// Type is the OVS interface type: empty for an existing device, "internal" for one that OVS makes.
	Type string
	MAC  string            // of an internal device; empty leaves the choice to OVS
	MTU  int               // of an internal device; 0 leaves the choice to OVS
	Info map[string]string // further external_ids, for people and debugging
}

func (p Port) externalIDs() map[string]string {
	ids := maps.Clone(p.Info)
	if ids == nil {
		ids = map[string]string{}
	}
	for key, value := range map[string]string{keyPort: p.Logical, keyVersion: p.Version, keyOwner: p.Owner} {
		if value != "" {
			ids[key] = value
		}
	}
	return ids
}

// Plug adds the device to the bridge in one transaction. Every other device that is plugged for the same logical port is
// unplugged by the same transaction: two devices with one iface-id would fight for it. Plugging what is plugged already,
// with the same owner and version, changes nothing.
func (c *Client) Plug(ctx context.Context, p Port) error {
	stale := []string{}
	for _, other := range c.interfaces() {
		switch {
		case other.Name == p.Name && same(other, p):
			// keep
		case other.Name == p.Name || other.ExternalIDs[keyPort] == p.Logical:
			stale = append(stale, other.Name)
		}
	}
	operations, err := c.unplugOperations(stale)
	if err != nil {
		return err
	}
	if c.iface(p.Name) == nil || slices.Contains(stale, p.Name) {
		add, err := c.plugOperations(p)
		if err != nil {
			return err
		}
		operations = append(operations, add...)
	}
	return c.transact(ctx, fmt.Sprintf("plug %s for logical port %s", p.Name, p.Logical), operations)
}

// same says whether the interface is plugged as p wants, apart from what may change while it stays.
func same(i *vswitch.Interface, p Port) bool {
	ids := i.ExternalIDs
	return ids[keyPort] == p.Logical && ids[keyVersion] == p.Version && ids[keyOwner] == p.Owner && i.Type == p.Type &&
		(p.MAC == "" || i.MAC != nil && *i.MAC == p.MAC) && (p.MTU == 0 || i.MTURequest != nil && *i.MTURequest == p.MTU)
}

func (c *Client) plugOperations(p Port) ([]ovsdb.Operation, error) {
	bridge := c.bridge(IntegrationBridge)
	if bridge == nil {
		return nil, fmt.Errorf("plug %s: the node has no bridge %s; ovn-controller or the agent makes it at start", p.Name, IntegrationBridge)
	}
	iface := &vswitch.Interface{UUID: "iface", Name: p.Name, Type: p.Type, ExternalIDs: p.externalIDs()}
	if p.MAC != "" {
		iface.MAC = &p.MAC
	}
	if p.MTU != 0 {
		iface.MTURequest = &p.MTU
	}
	// transient: ovs-ctl removes such ports at boot, when their devices are gone for good.
	port := &vswitch.Port{UUID: "port", Name: p.Name, Interfaces: []string{"iface"}, OtherConfig: map[string]string{"transient": "true"}}
	operations, err := c.create(iface, port)
	if err != nil {
		return nil, err
	}
	attach, err := c.db.Where(bridge).Mutate(bridge, model.Mutation{
		Field: &bridge.Ports, Mutator: ovsdb.MutateOperationInsert, Value: []string{"port"}})
	return append(operations, attach...), err
}

// Unplug removes devices from the bridge. Those that are not plugged are no error.
func (c *Client) Unplug(ctx context.Context, names ...string) error {
	operations, err := c.unplugOperations(names)
	if err != nil {
		return err
	}
	return c.transact(ctx, fmt.Sprintf("unplug %v", names), operations)
}

// unplugOperations take the ports off the bridge; the database drops rows that nothing refers to.
func (c *Client) unplugOperations(names []string) ([]ovsdb.Operation, error) {
	bridge := c.bridge(IntegrationBridge)
	if bridge == nil || len(names) == 0 {
		return nil, nil
	}
	var ports []vswitch.Port
	err := c.db.WhereCache(func(p *vswitch.Port) bool {
		return slices.Contains(names, p.Name) && slices.Contains(bridge.Ports, p.UUID)
	}).List(context.Background(), &ports)
	if err != nil || len(ports) == 0 {
		return nil, err
	}
	uuids := make([]string, len(ports))
	for i := range ports {
		uuids[i] = ports[i].UUID
	}
	return c.db.Where(bridge).Mutate(bridge, model.Mutation{
		Field: &bridge.Ports, Mutator: ovsdb.MutateOperationDelete, Value: uuids})
}

// AwaitInstalled blocks until ovn-controller says that the flows of the plugged device's logical port are in place. When the
// context ends first, the error says what OVS and OVN know of the device.
func (c *Client) AwaitInstalled(ctx context.Context, name string) error {
	for {
		changed := c.Changed()
		iface := c.iface(name)
		if iface != nil && iface.ExternalIDs[keyInstalled] == "true" {
			return nil
		}
		if iface != nil && iface.Error != nil {
			return fmt.Errorf("device %s cannot be used by Open vSwitch: %s", name, *iface.Error)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", c.notInstalled(name, iface), context.Cause(ctx))
		}
	}
}

func (c *Client) notInstalled(name string, iface *vswitch.Interface) string {
	switch {
	case iface == nil:
		return fmt.Sprintf("device %s was unplugged meanwhile", name)
	case iface.Ofport == nil:
		return fmt.Sprintf("ovs-vswitchd has not taken device %s yet (is it running?)", name)
	}
	return fmt.Sprintf("OVN has not installed the flows of logical port %s (is ovn-controller running, and does the port exist with "+
		"this node as requested-chassis and %q as iface-id-ver?)", iface.ExternalIDs[keyPort], iface.ExternalIDs[keyVersion])
}

// Owned lists the plugged devices whose owner begins with prefix: their owners by device name.
func (c *Client) Owned(prefix string) map[string]string {
	out := map[string]string{}
	for _, i := range c.interfaces() {
		if owner := i.ExternalIDs[keyOwner]; owner != "" && len(owner) >= len(prefix) && owner[:len(prefix)] == prefix {
			out[i.Name] = owner
		}
	}
	return out
}

// Installed says whether the device is plugged for the logical port and its flows are in place.
func (c *Client) Installed(name, logical string) bool {
	i := c.iface(name)
	return i != nil && i.ExternalIDs[keyPort] == logical && i.ExternalIDs[keyInstalled] == "true"
}

func (c *Client) interfaces() []*vswitch.Interface {
	var list []*vswitch.Interface
	_ = c.db.List(context.Background(), &list) // fails only for types that are not in the model
	return list
}

func (c *Client) iface(name string) *vswitch.Interface {
	i := &vswitch.Interface{Name: name}
	if c.db.Get(context.Background(), i) != nil {
		return nil
	}
	return i
}

func (c *Client) bridge(name string) *vswitch.Bridge {
	b := &vswitch.Bridge{Name: name}
	if c.db.Get(context.Background(), b) != nil {
		return nil
	}
	return b
}
