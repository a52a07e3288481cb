package qmp

import (
	"context"
	"fmt"
	"path"
	"strings"
)

// peripherals is where QEMU's object tree holds the devices that have an id.
const peripherals = "/machine/peripheral"

// Devices lists the ids of all devices that have one.
func (m Machine) Devices(ctx context.Context) ([]string, error) {
	children, err := m.children(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, child := range children {
		if strings.HasPrefix(child.Type, "child<") {
			ids = append(ids, child.Name)
		}
	}
	return ids, nil
}

// child is an entry of QEMU's object tree.
type child struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func (m Machine) children(ctx context.Context) (all []child, err error) {
	err = m.Execute(ctx, Command{Name: "qom-list", Args: map[string]any{"path": peripherals}}, &all)
	return all, err
}

// Ports tells what sits in each PCI root port: the port's device id to the ids of the devices behind it, an empty list when there
// are none. It reads QEMU's object tree: query-pci goes by the bus numbers that the guest gave, and shows nothing before it has.
func (m Machine) Ports(ctx context.Context) (map[string][]string, error) {
	children, err := m.children(ctx)
	if err != nil {
		return nil, err
	}
	ports := map[string][]string{}
	for _, child := range children {
		if child.Type == "child<pcie-root-port>" {
			ports[child.Name] = []string{}
		}
	}
	for _, child := range children {
		if !strings.HasPrefix(child.Type, "child<") || child.Type == "child<pcie-root-port>" {
			continue
		}
		bus, err := m.bus(ctx, child.Name)
		if err != nil {
			return nil, err
		}
		// A root port's bus is its child: /machine/peripheral/port1/port1.
		port := path.Base(path.Dir(bus))
		if _, ok := ports[port]; ok {
			ports[port] = append(ports[port], child.Name)
		}
	}
	return ports, nil
}

// bus is the object path of the bus that a device is plugged into.
func (m Machine) bus(ctx context.Context, device string) (bus string, err error) {
	args := map[string]any{"path": path.Join(peripherals, device), "property": "parent_bus"}
	err = m.Execute(ctx, Command{Name: "qom-get", Args: args}, &bus)
	if notFound(err) { // unplugged since it was listed
		return "", nil
	}
	return bus, err
}

// RxFilter is what a guest told its NIC to accept.
type RxFilter struct {
	Name        string   `json:"name"`
	MainMAC     string   `json:"main-mac"`
	Promiscuous bool     `json:"promiscuous"`
	Unicast     []string `json:"unicast-table"`
	Multicast   []string `json:"multicast-table"`
}

// RxFilter asks for a NIC's filter, by device id. Asking also makes QEMU report the next change.
func (m Machine) RxFilter(ctx context.Context, device string) (RxFilter, error) {
	var filters []RxFilter
	err := m.Execute(ctx, Command{Name: "query-rx-filter", Args: map[string]any{"name": device}}, &filters)
	if err != nil {
		return RxFilter{}, err
	}
	if len(filters) != 1 {
		return RxFilter{}, fmt.Errorf("QEMU reports %d receive filters for %s, want one", len(filters), device)
	}
	return filters[0], nil
}

// AgentOpen tells whether the guest holds the virtio-serial port of a character device open: a guest agent runs.
func (m Machine) AgentOpen(ctx context.Context, chardev string) (bool, error) {
	var all []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := m.Execute(ctx, Command{Name: "query-chardev"}, &all); err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Label == chardev {
			return c.Open, nil
		}
	}
	return false, fmt.Errorf("QEMU has no character device %s", chardev)
}
