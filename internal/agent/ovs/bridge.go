package ovs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/vishvananda/netlink"

	"patchbay/internal/agent/ovs/vswitch"
)

// Datapath says who forwards the packets of a bridge.
type Datapath string

const (
	// Kernel is the openvswitch kernel module.
	Kernel Datapath = "system"
	// Userspace is ovs-vswitchd itself.
	Userspace Datapath = "netdev"
)

// String is for people.
func (d Datapath) String() string {
	if d == Userspace {
		return "userspace (netdev)"
	}
	return "kernel (system)"
}

// kernelFamily is the generic netlink family that the kernel module registers.
const kernelFamily = "ovs_datapath"

// EnsureIntegrationBridge makes the integration bridge when it is missing and says which datapath it runs on. An
// administrator's choice (external_ids:ovn-bridge-datapath-type) wins over what the kernel offers.
func (c *Client) EnsureIntegrationBridge(ctx context.Context) (Datapath, error) {
	if bridge := c.bridge(IntegrationBridge); bridge != nil {
		return datapathOf(bridge), nil
	}
	root, err := c.root()
	if err != nil {
		return "", err
	}
	datapath := Datapath(root.ExternalIDs["ovn-bridge-datapath-type"])
	if datapath != Userspace && datapath != Kernel {
		datapath = offeredDatapath()
	}
	secure := vswitch.BridgeFailModeSecure
	err = c.addBridge(ctx, root, IntegrationBridge, datapath, &secure)
	if err == nil {
		return datapath, nil
	}
	// ovn-controller makes the bridge too, and may have been quicker.
	wait, cancel := context.WithTimeout(ctx, bridgeRace)
	defer cancel()
	for {
		changed := c.Changed()
		if bridge := c.bridge(IntegrationBridge); bridge != nil {
			return datapathOf(bridge), nil
		}
		select {
		case <-changed:
		case <-wait.Done():
			return "", err
		}
	}
}

// bridgeRace is how long somebody else's bridge may take to show up here.
const bridgeRace = 2 * time.Second

func datapathOf(b *vswitch.Bridge) Datapath {
	if b.DatapathType == string(Userspace) {
		return Userspace
	}
	return Kernel
}

func offeredDatapath() Datapath {
	if _, err := netlink.GenlFamilyGet(kernelFamily); err != nil {
		return Userspace
	}
	return Kernel
}

func (c *Client) addBridge(ctx context.Context, root *vswitch.OpenvSwitch, name string, datapath Datapath, failMode *vswitch.BridgeFailMode) error {
	operations, err := c.create(
		&vswitch.Interface{UUID: "iface", Name: name, Type: "internal"},
		&vswitch.Port{UUID: "port", Name: name, Interfaces: []string{"iface"}},
		&vswitch.Bridge{UUID: "bridge", Name: name, Ports: []string{"port"}, DatapathType: string(datapath), FailMode: failMode},
	)
	if err != nil {
		return err
	}
	attach, err := c.db.Where(root).Mutate(root, model.Mutation{
		Field: &root.Bridges, Mutator: ovsdb.MutateOperationInsert, Value: []string{"bridge"}})
	if err != nil {
		return err
	}
	return c.transact(ctx, "make bridge "+name, append(operations, attach...))
}

func (c *Client) root() (*vswitch.OpenvSwitch, error) {
	var roots []*vswitch.OpenvSwitch
	if err := c.db.List(context.Background(), &roots); err != nil {
		return nil, err
	}
	if len(roots) != 1 {
		return nil, errors.New("the Open vSwitch database is empty; run ovs-vsctl --no-wait init on the node")
	}
	return roots[0], nil
}

// SystemID is the node's chassis name in OVN.
func (c *Client) SystemID() (string, error) {
	root, err := c.root()
	if err != nil {
		return "", err
	}
	id := root.ExternalIDs["system-id"]
	if id == "" {
		return "", fmt.Errorf("the Open vSwitch database has no external_ids:system-id; OVN needs one")
	}
	return id, nil
}
