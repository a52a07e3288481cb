package qemu

import (
	"errors"
	"fmt"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qmp"
)

// NICDevice is the id in QEMU of an interface's device.
func NICDevice(name string) string { return "nic-" + name }

// NICBackend is the id in QEMU of the backend of an interface's device.
func NICBackend(name string) string { return "net-" + name }

// nicModels are the models that the API offers and Debian's QEMU has, by their QEMU name.
var nicModels = map[string]string{
	"": "virtio-net-pci", "virtio": "virtio-net-pci", "virtio-non-transitional": "virtio-net-pci", "virtio-transitional": "virtio-net-pci",
	"e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139", "pcnet": "pcnet", "ne2k_pci": "ne2k_pci",
}

// nics adds the interfaces that have a place of their own: those with an address or a port, then as many as fit in the first ports.
func (b *builder) nics() error {
	for i, iface := range b.domain.Devices.Interfaces {
		if iface.State == virtv1.InterfaceStateAbsent {
			continue
		}
		nic, ok := b.wired(iface.Name)
		if !ok {
			return fmt.Errorf("spec.domain.devices.interfaces[%d]: interface %s is not connected to its network yet", i, iface.Name)
		}
		var at place
		var err error
		switch {
		case nic.Port != 0:
			at, err = b.layout.take(nic.Port, true)
		case iface.PciAddress != "":
			at, err = b.layout.at(iface.PciAddress, true)
		default:
			continue
		}
		if err := errors.Join(err, b.nic(iface, nic, at)); err != nil {
			return field(fmt.Sprintf("spec.domain.devices.interfaces[%d]", i), err)
		}
	}
	return b.placeNICs(1, false)
}

// lateNICs adds the interfaces that found no room in the first ports, behind everything else.
func (b *builder) lateNICs() error { return b.placeNICs(b.layout.fixed+1, true) }

// placeNICs adds the interfaces that have no place yet to free ports from a number on: all of them when it is late, else as
// many as the first ports hold.
func (b *builder) placeNICs(from int, late bool) error {
	for i, iface := range b.domain.Devices.Interfaces {
		nic, ok := b.wired(iface.Name)
		if iface.State == virtv1.InterfaceStateAbsent || !ok || b.placed[iface.Name] {
			continue
		}
		port := b.layout.free(from)
		if port > nicPorts && !late {
			return nil
		}
		at, err := b.layout.take(port, true)
		if err := errors.Join(err, b.nic(iface, nic, at)); err != nil {
			return field(fmt.Sprintf("spec.domain.devices.interfaces[%d]", i), err)
		}
	}
	return nil
}

func (b *builder) wired(name string) (NIC, bool) {
	for _, nic := range b.facts.NICs {
		if nic.Name == name {
			return nic, true
		}
	}
	return NIC{}, false
}

func (b *builder) nic(iface virtv1.Interface, nic NIC, at place) error {
	driver, p, err := nicDevice(b.vmi, iface, nic, at)
	if err != nil {
		return err
	}
	backend, err := nicBackend(nic)
	if err != nil {
		return err
	}
	b.placed[iface.Name] = true
	b.devices = append(b.devices, "-netdev", backend)
	b.device(append(properties{{"netdev", NICBackend(nic.Name)}}, p...), driver)
	if iface.Tag != "" {
		b.tagged = append(b.tagged, deviceTag{Type: "nic", Bus: "pci", Address: at.address(), MAC: nic.MAC.String(), Tags: []string{iface.Tag}})
	}
	return nil
}

// nicBackend is the end of a NIC on the host: a tap by its descriptors, or a stream socket.
func nicBackend(nic NIC) (string, error) {
	p := properties{{"id", NICBackend(nic.Name)}}
	if nic.Socket != "" {
		// QEMU 7.2 connects once, but a server takes the next caller when one has gone: passt may die and come back.
		p = append(p, property{"server", true}, property{"addr.type", "unix"}, property{"addr.path", nic.Socket})
		return p.option("stream"), nil
	}
	switch {
	case len(nic.FDs) == 0:
		return "", errors.New("its tap was not opened")
	case len(nic.VhostFDs) != 0 && len(nic.VhostFDs) != len(nic.FDs):
		return "", fmt.Errorf("it has %d queues but %d vhost descriptors", len(nic.FDs), len(nic.VhostFDs))
	}
	one := len(nic.FDs) == 1
	p.set(plural("fd", one), fdList(nic.FDs))
	p.set("vhost", len(nic.VhostFDs) > 0)
	if len(nic.VhostFDs) > 0 {
		p.set(plural("vhostfd", one), fdList(nic.VhostFDs))
	}
	return p.option("tap"), nil
}

func plural(word string, one bool) string {
	if one {
		return word
	}
	return word + "s"
}

func fdList(positions []int) string {
	words := make([]string, len(positions))
	for i, n := range positions {
		words[i] = fmt.Sprintf("{fd:%d}", n)
	}
	return strings.Join(words, ":")
}

// nicDevice is the guest's side of a NIC.
func nicDevice(vmi *virtv1.VirtualMachineInstance, iface virtv1.Interface, nic NIC, at place) (string, properties, error) {
	driver, known := nicModels[iface.Model]
	if !known {
		return "", nil, fmt.Errorf("model %q is not in this QEMU; use virtio or e1000e", iface.Model)
	}
	p := properties{{"id", NICDevice(nic.Name)}, {"mac", nic.MAC.String()}}
	switch driver {
	case "virtio-net-pci":
		p = append(p, virtioVersion(vmi, iface.Model == "virtio-transitional")...)
		p = append(p, virtioNIC(nic)...)
	case "e1000e":
		if !nic.Offloads {
			p.set("disable_vnet_hdr", 1)
		}
	}
	if iface.BootOrder != nil {
		p.set("bootindex", *iface.BootOrder)
	} else {
		p.set("romfile", "") // firmware would spend seconds on network boot
	}
	if iface.ACPIIndex != 0 {
		p.set("acpi-index", iface.ACPIIndex)
	}
	return driver, append(p, at.properties()...), nil
}

func virtioNIC(nic NIC) properties {
	var p properties
	if nic.MTU != 0 {
		p.set("host_mtu", nic.MTU)
	}
	if n := len(nic.FDs); n > 1 {
		p.set("mq", true)
		p.set("vectors", 2*n+2) // two per queue, one for control, one for configuration
	}
	if !nic.Offloads {
		for _, offload := range []string{"csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo",
			"host_tso4", "host_tso6", "host_ecn", "host_ufo"} {
			p.set(offload, false)
		}
	}
	return p
}

// virtioVersion is virtio 1 only, or the older interface too for guests before 2014.
func virtioVersion(vmi *virtv1.VirtualMachineInstance, transitional bool) properties {
	if transitional || isTrue(vmi.Spec.Domain.Devices.UseVirtioTransitional) {
		return properties{{"disable-legacy", "off"}, {"disable-modern", false}}
	}
	return properties{{"disable-legacy", "on"}}
}

// PlugNIC is what to give the monitor to plug a wired NIC into a running guest, without the files: ports is what Machine.Ports says. A place
// the guest can keep after a restart is preferred.
func PlugNIC(vmi *virtv1.VirtualMachineInstance, nic NIC, ports map[string][]string) (qmp.NIC, error) {
	for _, iface := range vmi.Spec.Domain.Devices.Interfaces {
		if iface.Name != nic.Name {
			continue
		}
		if nicModels[iface.Model] != "virtio-net-pci" {
			return qmp.NIC{}, fmt.Errorf("interface %s: only the virtio model can be plugged while the guest runs; restart the VM", nic.Name)
		}
		port, err := freePort(ports)
		if err != nil {
			return qmp.NIC{}, fmt.Errorf("interface %s: %w", nic.Name, err)
		}
		driver, p, err := nicDevice(vmi, iface, nic, place{port: port})
		if err != nil {
			return qmp.NIC{}, fmt.Errorf("interface %s: %w", nic.Name, err)
		}
		p.set("driver", driver)
		return qmp.NIC{Netdev: NICBackend(nic.Name), Device: p.arguments()}, nil
	}
	return qmp.NIC{}, fmt.Errorf("the VM has no interface %s", nic.Name)
}

// freePort is the lowest empty port that takes a NIC.
func freePort(ports map[string][]string) (int, error) {
	best := 0
	for id, devices := range ports {
		n := portNumber(id)
		if n != 0 && n != scsiPort && len(devices) == 0 && (best == 0 || n < best) {
			best = n
		}
	}
	if best == 0 {
		return 0, errors.New("no PCI port is free; restart the VM, it gets ports for all its interfaces then")
	}
	return best, nil
}

// NICPorts tells from what Machine.Ports says which port each NIC sits in, and how many ports there are: what the target of a migration must copy.
func NICPorts(ports map[string][]string) (nics map[string]int, count int) {
	nics = map[string]int{}
	for id, devices := range ports {
		n := portNumber(id)
		count = max(count, n)
		for _, device := range devices {
			if name, ok := strings.CutPrefix(device, "nic-"); ok && n != 0 {
				nics[name] = n
			}
		}
	}
	return nics, count
}
