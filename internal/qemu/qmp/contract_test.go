package qmp_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/qemu/qmp"
	"patchbay/internal/qemu/qmp/qmptest"
)

// The contract holds for any monitor of a machine with the empty root ports port1 and port2.

func TestFakeKeepsTheContract(t *testing.T) {
	contract(t, func(*testing.T) qmp.Monitor { return qmptest.New("port1", "port2") })
}

func TestQEMUKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) qmp.Monitor { return dial(t, startQEMU(t)) })
}

// startQEMU runs a machine without a guest: firmware finds nothing to boot. It returns the path of its monitor.
func startQEMU(t *testing.T, more ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp.sock")
	command := exec.Command("qemu-system-x86_64", append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc-q35-7.2",
		"-accel", "tcg,tb-size=32", "-m", "32M", "-qmp", "unix:" + path + ",server=on,wait=off",
		"-device", "pcie-root-port,id=port1,chassis=1", "-device", "pcie-root-port,id=port2,chassis=2"}, more...)...)
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	return path
}

func dial(t *testing.T, path string) (client *qmp.Client) {
	t.Helper()
	launchertest.Eventually(t, "QEMU has its monitor", func() (err error) {
		client, err = qmp.Dial(t.Context(), path)
		return err
	})
	t.Cleanup(func() { client.Close() })
	return client
}

func contract(t *testing.T, newMonitor func(*testing.T) qmp.Monitor) {
	for name, check := range map[string]func(*testing.T, qmp.Machine){
		"pause and resume": pauseAndResume,
		"power button":     powerButton,
		"plug and unplug":  plugAndUnplug,
		"plug refused":     plugRefused,
		"refusals":         refusals,
		"end":              end,
		"deadline":         deadline,
	} {
		t.Run(name, func(t *testing.T) { check(t, qmp.Machine{Monitor: newMonitor(t)}) })
	}
}

func await(t *testing.T, events *qmp.Subscription, name string) qmp.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	event, err := events.Until(ctx, func(e qmp.Event) bool { return e.Name == name })
	if err != nil {
		t.Fatalf("no event %s came: %v", name, err)
	}
	return event
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, m qmp.Machine, want string) {
	t.Helper()
	s, err := m.Status(t.Context())
	ok(t, err)
	if s.State != want || s.Running != (want == "running") {
		t.Errorf("the status is %+v, want %s", s, want)
	}
}

func pauseAndResume(t *testing.T, m qmp.Machine) {
	events := m.Subscribe()
	defer events.Close()
	status(t, m, "running")
	ok(t, m.Pause(t.Context()))
	await(t, events, qmp.EventStop)
	status(t, m, "paused")
	ok(t, m.Resume(t.Context()))
	await(t, events, qmp.EventResume)
	status(t, m, "running")
}

func powerButton(t *testing.T, m qmp.Machine) {
	one, two := m.Subscribe(), m.Subscribe()
	ok(t, m.Powerdown(t.Context()))
	ok(t, m.Reset(t.Context()))
	for _, events := range []*qmp.Subscription{one, two} { // each sees all
		await(t, events, qmp.EventPowerdown)
		await(t, events, qmp.EventReset)
		events.Close()
	}
}

func nic(t *testing.T, port string, queues int) qmp.NIC {
	device := map[string]any{"driver": "virtio-net-pci", "id": "nic-a", "bus": port, "addr": "0x0", "mac": "02:00:00:00:00:0a", "romfile": "", "disable-legacy": "on", "csum": false}
	if queues > 1 {
		device["mq"], device["vectors"] = true, 2*queues+2
	}
	return qmp.NIC{Netdev: "net-a", Device: device, Taps: launchertest.Taps(t, queues)}
}

func portsAre(t *testing.T, m qmp.Machine, want map[string][]string) {
	t.Helper()
	got, err := m.Ports(t.Context())
	ok(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("root ports (-want +got):\n%s", diff)
	}
}

// plugAndUnplug unplugs through a reset: without a guest nobody else releases the device.
func plugAndUnplug(t *testing.T, m qmp.Machine) {
	portsAre(t, m, map[string][]string{"port1": {}, "port2": {}})
	ok(t, m.PlugNIC(t.Context(), nic(t, "port2", 2)))
	portsAre(t, m, map[string][]string{"port1": {}, "port2": {"nic-a"}})
	filter, err := m.RxFilter(t.Context(), "nic-a")
	ok(t, err)
	if filter.MainMAC != "02:00:00:00:00:0a" {
		t.Errorf("the NIC's MAC is %s", filter.MainMAC)
	}
	ok(t, m.SetLink(t.Context(), "nic-a", false))

	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.UnplugNIC(short, "nic-a", "net-a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that does not answer: %v, want the deadline", err)
	}
	// Asked again while the first request stands.
	done := make(chan error)
	events := m.Subscribe()
	go func() { done <- m.UnplugNIC(t.Context(), "nic-a", "net-a") }()
	ok(t, m.Reset(t.Context()))
	// The device's own event comes after one for a nameless part of it.
	var part, whole qmp.DeviceData
	ok(t, await(t, events, qmp.EventDeviceDeleted).Decode(&part))
	ok(t, await(t, events, qmp.EventDeviceDeleted).Decode(&whole))
	if part.Device != "" || whole.Device != "nic-a" {
		t.Errorf("the events name %q and %q, want nothing and nic-a", part.Device, whole.Device)
	}
	ok(t, <-done)
	portsAre(t, m, map[string][]string{"port1": {}, "port2": {}})
	ok(t, m.UnplugNIC(t.Context(), "nic-a", "net-a")) // gone already
	ok(t, m.PlugNIC(t.Context(), nic(t, "port1", 1))) // nothing is left under its names
}

func plugRefused(t *testing.T, m qmp.Machine) {
	var refused *qmp.Error
	if err := m.PlugNIC(t.Context(), nic(t, "port9", 1)); !errors.As(err, &refused) || refused.Command != "device_add" || !strings.Contains(refused.Desc, "port9") {
		t.Errorf("a port that is not there: %v", err)
	}
	ok(t, m.PlugNIC(t.Context(), nic(t, "port1", 1)))
	second := nic(t, "port2", 1)
	if err := m.PlugNIC(t.Context(), second); !errors.As(err, &refused) || refused.Command != "netdev_add" {
		t.Errorf("the same backend twice: %v", err)
	}
	second.Netdev, second.Device["id"], second.Device["bus"] = "net-b", "nic-b", "port1"
	if err := m.PlugNIC(t.Context(), second); !errors.As(err, &refused) || refused.Command != "device_add" {
		t.Errorf("an occupied port: %v", err)
	}
	second.Device["bus"] = "port2"
	ok(t, m.PlugNIC(t.Context(), second))
}

func refusals(t *testing.T, m qmp.Machine) {
	for _, c := range []struct{ command, class string }{{"no-such-command", qmp.ClassCommandNotFound}, {"netdev_del", qmp.ClassDeviceNotFound}, {"device_del", qmp.ClassDeviceNotFound}} {
		var args any
		if c.class == qmp.ClassDeviceNotFound {
			args = map[string]any{"id": "nobody"}
		}
		err := m.Execute(t.Context(), qmp.Command{Name: c.command, Args: args}, nil)
		var refused *qmp.Error
		if !errors.As(err, &refused) || refused.Class != c.class || refused.Command != c.command {
			t.Errorf("%s: %v, want a refusal of class %s", c.command, err, c.class)
		}
	}
	if err := m.SetLink(t.Context(), "nobody", true); err == nil {
		t.Error("the link of a NIC that is not there was set")
	}
	if err := m.RemoveDevice(t.Context(), "nobody"); err != nil {
		t.Errorf("a device that is gone cannot be removed: %v", err)
	}
}

func end(t *testing.T, m qmp.Machine) {
	events := m.Subscribe()
	ok(t, m.Quit(t.Context()))
	var data qmp.ShutdownData
	ok(t, await(t, events, qmp.EventShutdown).Decode(&data))
	if data.Guest || data.Reason != qmp.HostQuit {
		t.Errorf("the shutdown was by %+v, want the monitor's quit", data)
	}
	<-m.Done()
	if _, err := events.Until(t.Context(), func(qmp.Event) bool { return false }); err == nil || m.Err() == nil {
		t.Error("the end has no reason")
	}
	if err := m.Powerdown(t.Context()); err == nil {
		t.Error("a command was carried out after the end")
	}
	if _, err := m.Subscribe().Next(t.Context()); err == nil {
		t.Error("a late subscription does not end")
	}
}

func deadline(t *testing.T, m qmp.Machine) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the deadline: %v", err)
	}
}
