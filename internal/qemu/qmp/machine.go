package qmp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Machine is a virtual machine behind a monitor, in typed commands.
type Machine struct{ Monitor }

// Status is QEMU's run state.
type Status struct {
	Running bool   `json:"running"`
	State   string `json:"status"` // running, paused, prelaunch, shutdown, io-error, guest-panicked, inmigrate, postmigrate, …
}

// Status asks for the run state.
func (m Machine) Status(ctx context.Context) (s Status, err error) {
	err = m.Execute(ctx, Command{Name: "query-status"}, &s)
	return s, err
}

// Powerdown presses the ACPI power button. The guest decides what follows.
func (m Machine) Powerdown(ctx context.Context) error { return m.do(ctx, "system_powerdown", nil) }

// Reset presses the reset button.
func (m Machine) Reset(ctx context.Context) error { return m.do(ctx, "system_reset", nil) }

// Pause stops the virtual CPUs; Resume lets them run.
func (m Machine) Pause(ctx context.Context) error  { return m.do(ctx, "stop", nil) }
func (m Machine) Resume(ctx context.Context) error { return m.do(ctx, "cont", nil) }

// Quit ends QEMU without telling the guest; disks are flushed.
func (m Machine) Quit(ctx context.Context) error { return m.do(ctx, "quit", nil) }

// SetLink plugs or pulls the cable of a NIC, by device id.
func (m Machine) SetLink(ctx context.Context, device string, up bool) error {
	return m.do(ctx, "set_link", map[string]any{"name": device, "up": up})
}

// Screenshot has QEMU write what the screen shows to a file, as PNG.
func (m Machine) Screenshot(ctx context.Context, file string) error {
	return m.do(ctx, "screendump", map[string]any{"filename": file, "format": "png"})
}

// NIC is a network card to plug while the guest runs.
type NIC struct {
	Netdev string         // id of the backend
	Device map[string]any // arguments of device_add, with the device's id and without netdev
	// Taps are the tap's descriptors, one per queue; Vhosts as many opened /dev/vhost-net, or none.
	Taps, Vhosts []*os.File
}

// ID is the device's id.
func (n NIC) ID() string {
	id, _ := n.Device["id"].(string)
	return id
}

// PlugNIC adds a NIC. The guest may take it into use later. Nothing is left behind when it fails; the caller keeps the files.
func (m Machine) PlugNIC(ctx context.Context, nic NIC) (err error) {
	args := map[string]any{"type": "tap", "id": nic.Netdev}
	names, err := m.giveFiles(ctx, nic)
	if err != nil {
		return err
	}
	switch {
	case len(nic.Taps) == 1:
		args["fd"] = names.taps[0]
	default:
		args["fds"] = strings.Join(names.taps, ":")
	}
	switch {
	case len(nic.Vhosts) == 1:
		args["vhost"], args["vhostfd"] = true, names.vhosts[0]
	case len(nic.Vhosts) > 1:
		args["vhost"], args["vhostfds"] = true, strings.Join(names.vhosts, ":")
	}
	if err := m.do(ctx, "netdev_add", args); err != nil {
		return errors.Join(err, m.takeFilesBack(ctx, names))
	}
	device := map[string]any{"netdev": nic.Netdev}
	for key, value := range nic.Device {
		device[key] = value
	}
	if err := m.do(ctx, "device_add", device); err != nil {
		return errors.Join(err, m.do(ctx, "netdev_del", map[string]any{"id": nic.Netdev}))
	}
	return nil
}

func fileName(netdev, kind string, n int) string { return fmt.Sprintf("%s-%s%d", netdev, kind, n) }

// ForgetNIC removes what a PlugNIC that was cut short, by the caller's own end, may have left of a NIC that has no device: the backend, and
// descriptors that wait for one. Nothing left is no error.
func (m Machine) ForgetNIC(ctx context.Context, netdev string) error {
	if err := m.do(ctx, "netdev_del", map[string]any{"id": netdev}); err != nil && !notFound(err) {
		return err
	}
	for _, kind := range []string{tapFile, vhostFile} {
		for n := 0; ; n++ {
			err := m.do(ctx, "closefd", map[string]any{"fdname": fileName(netdev, kind, n)})
			if notFound(err) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Kinds of files in fileName.
const (
	tapFile   = "tap"
	vhostFile = "vhost"
)

type fileNames struct{ taps, vhosts []string }

func (m Machine) giveFiles(ctx context.Context, nic NIC) (names fileNames, err error) {
	give := func(kind string, files []*os.File) (given []string, err error) {
		for i, file := range files {
			name := fileName(nic.Netdev, kind, i)
			if err := m.Execute(ctx, Command{Name: "getfd", Args: map[string]any{"fdname": name}, File: file}, nil); err != nil {
				return given, err
			}
			given = append(given, name)
		}
		return given, nil
	}
	if names.taps, err = give(tapFile, nic.Taps); err == nil {
		names.vhosts, err = give(vhostFile, nic.Vhosts)
	}
	if err != nil {
		return names, errors.Join(err, m.takeFilesBack(ctx, names))
	}
	return names, nil
}

// takeFilesBack closes what QEMU still holds under the names; netdev_add consumes them when it works.
func (m Machine) takeFilesBack(ctx context.Context, names fileNames) error {
	var errs []error
	for _, name := range append(names.taps, names.vhosts...) {
		errs = append(errs, m.do(ctx, "closefd", map[string]any{"fdname": name}))
	}
	return errors.Join(errs...)
}

// UnplugNIC asks the guest to release a NIC, waits until it has and removes the backend. A guest without a kernel that
// listens never answers: ctx must have a deadline.
func (m Machine) UnplugNIC(ctx context.Context, device, netdev string) error {
	if err := m.RemoveDevice(ctx, device); err != nil {
		return err
	}
	if err := m.do(ctx, "netdev_del", map[string]any{"id": netdev}); err != nil && !notFound(err) {
		return err
	}
	return nil
}

// RemoveDevice asks the guest to release a device and waits until it has. A device that is gone already is no error.
func (m Machine) RemoveDevice(ctx context.Context, device string) error {
	events := m.Subscribe()
	defer events.Close()
	err := m.do(ctx, "device_del", map[string]any{"id": device})
	switch {
	case notFound(err):
		return nil
	case err != nil && !unplugPending(err):
		return err
	}
	event, err := events.Until(ctx, func(e Event) bool {
		if e.Name != EventDeviceDeleted && e.Name != EventUnplugError {
			return false
		}
		var data DeviceData
		return e.Decode(&data) == nil && data.Device == device
	})
	switch {
	case err != nil:
		return fmt.Errorf("the guest did not release device %s: %w", device, err)
	case event.Name == EventUnplugError:
		return fmt.Errorf("the guest refused to release device %s", device)
	}
	return nil
}

// notFound says that QEMU does not know the device or backend.
func notFound(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && (refused.Class == ClassDeviceNotFound || strings.HasSuffix(refused.Desc, "not found"))
}

// unplugPending says that the guest was asked before and has not answered; QEMU has no class for it.
func unplugPending(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && strings.Contains(refused.Desc, "already in the process of unplug")
}

func (m Machine) do(ctx context.Context, name string, args any) error {
	return m.Execute(ctx, Command{Name: name, Args: args}, nil)
}
