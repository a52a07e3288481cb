package qmp

import (
	"context"
	"fmt"
)

// pciDevice is the part of PciDeviceInfo that says where devices sit.
type pciDevice struct {
	ID     string `json:"qdev_id"`
	Bridge *struct {
		Devices []pciDevice `json:"devices"`
	} `json:"pci_bridge"`
}

// Ports tells what sits in each PCI root port: the port's device id to the ids of the devices behind it. A device without an
// id is listed as "". Ports without a device have an empty list.
func (m Machine) Ports(ctx context.Context) (map[string][]string, error) {
	var buses []struct {
		Devices []pciDevice `json:"devices"`
	}
	if err := m.Execute(ctx, Command{Name: "query-pci"}, &buses); err != nil {
		return nil, err
	}
	ports := map[string][]string{}
	for _, bus := range buses {
		for _, port := range bus.Devices {
			if port.Bridge == nil {
				continue
			}
			ports[port.ID] = []string{}
			for _, device := range port.Bridge.Devices {
				ports[port.ID] = append(ports[port.ID], device.ID)
			}
		}
	}
	return ports, nil
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
