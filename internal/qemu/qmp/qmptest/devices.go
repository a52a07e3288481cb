package qmptest

import (
	"maps"
	"slices"
	"strings"

	"patchbay/internal/qemu/qmp"
)

// addNetdev consumes the descriptors it is given by name.
func (f *Fake) addNetdev(args object) *qmp.Error {
	id, _ := args["id"].(string)
	if _, exists := f.netdevs[id]; exists {
		return refuse(qmp.ClassGeneric, "Duplicate ID '%s' for netdev", id)
	}
	var names []string
	for _, key := range []string{"fd", "fds", "vhostfd", "vhostfds"} {
		if list, ok := args[key].(string); ok {
			names = append(names, strings.Split(list, ":")...)
		}
	}
	for _, name := range names {
		if !f.files[name] {
			return refuse(qmp.ClassGeneric, "File descriptor named '%s' has not been found", name)
		}
	}
	for _, name := range names {
		delete(f.files, name)
	}
	kind, _ := args["type"].(string)
	f.netdevs[id] = kind + " with " + strings.Join(names, " ")
	return nil
}

func (f *Fake) deleteNetdev(id string) *qmp.Error {
	if _, exists := f.netdevs[id]; !exists {
		return refuse(qmp.ClassDeviceNotFound, "Device '%s' not found", id)
	}
	delete(f.netdevs, id)
	return nil
}

func (f *Fake) addDevice(args object) *qmp.Error {
	text := func(key string) string { s, _ := args[key].(string); return s }
	if !slices.Contains(f.ports, text("bus")) {
		return refuse(qmp.ClassGeneric, "Bus '%s' not found", text("bus"))
	}
	if _, exists := f.devices[text("id")]; exists {
		return refuse(qmp.ClassGeneric, "Duplicate device ID '%s'", text("id"))
	}
	if _, exists := f.netdevs[text("netdev")]; !exists {
		return refuse(qmp.ClassGeneric, "Property '%s.netdev' can't find value '%s'", text("driver"), text("netdev"))
	}
	for id, d := range f.devices {
		if d.bus == text("bus") {
			return refuse(qmp.ClassGeneric, "PCI: slot 0 function 0 not available for %s, in use by %s,id=%s", text("driver"), d.driver, id)
		}
	}
	f.devices[text("id")] = &device{driver: text("driver"), bus: text("bus"), netdev: text("netdev"), mac: text("mac")}
	return nil
}

// askToLeave asks the guest to release a device.
func (f *Fake) askToLeave(id string) ([]event, *qmp.Error) {
	d, exists := f.devices[id]
	switch {
	case !exists:
		return nil, refuse(qmp.ClassDeviceNotFound, "Device '%s' not found", id)
	case d.leaving:
		return nil, refuse(qmp.ClassGeneric, "Device %s is already in the process of unplug", id)
	}
	d.leaving = true
	if f.Obedient {
		return f.releaseAll(), nil
	}
	return nil, nil
}

// releaseAll removes the devices that were asked to leave.
func (f *Fake) releaseAll() (events []event) {
	for _, id := range slices.Sorted(maps.Keys(f.devices)) {
		if f.devices[id].leaving {
			delete(f.devices, id)
			object := "/machine/peripheral/" + id
			events = append(events, event{qmp.EventDeviceDeleted, qmp.DeviceData{Path: object + "/virtio-backend"}},
				event{qmp.EventDeviceDeleted, qmp.DeviceData{Device: id, Path: object}})
		}
	}
	return events
}

func (f *Fake) setLink(id string, up bool) *qmp.Error {
	d, exists := f.devices[id]
	if !exists {
		return refuse(qmp.ClassDeviceNotFound, "Device '%s' not found", id)
	}
	d.down = !up
	return nil
}

func (f *Fake) list() []object {
	var children []object
	for _, port := range f.ports {
		children = append(children, object{"name": port, "type": "child<pcie-root-port>"})
	}
	for id, d := range f.devices {
		children = append(children, object{"name": id, "type": "child<" + d.driver + ">"})
	}
	return append(children, object{"name": "type", "type": "string"})
}

func (f *Fake) parentBus(id string) (any, []event, *qmp.Error) {
	d, exists := f.devices[id]
	if !exists {
		return nil, nil, refuse(qmp.ClassDeviceNotFound, "Device '/machine/peripheral/%s' not found", id)
	}
	return "/machine/peripheral/" + d.bus + "/" + d.bus, nil, nil
}

func (f *Fake) filter(id string) (any, []event, *qmp.Error) {
	d, exists := f.devices[id]
	if !exists {
		return nil, nil, refuse(qmp.ClassGeneric, "invalid net client name: %s", id)
	}
	return []qmp.RxFilter{{Name: id, MainMAC: d.mac}}, nil, nil
}
