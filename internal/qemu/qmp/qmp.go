// Package qmp talks to a running QEMU through its monitor: commands with a deadline, events in order, file descriptors. It
// carries commands and knows their shapes; it must not know what a virtual machine instance is.
//
// Monitor is the seam: Client is the real one, package qmptest holds a fake that behaves like QEMU and dumps what happened.
// Machine puts typed commands on top of either.
package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Monitor is a QEMU monitor.
type Monitor interface {
	// Execute carries out one command and decodes its return value into result, unless that is nil.
	// A refusal by QEMU is an *Error. The command may have been carried out when ctx ends first.
	Execute(ctx context.Context, cmd Command, result any) error
	// Subscribe delivers every event from now on.
	Subscribe() *Subscription
	// Done is closed when the connection is lost or closed; Err says why.
	Done() <-chan struct{}
	Err() error
	Close() error
}

// Command is one QMP command.
type Command struct {
	Name string
	Args any      // marshals to a JSON object; nil for none
	File *os.File // handed to QEMU with the command (getfd, add-fd); the caller keeps its own copy
}

// Event is something QEMU reports by itself.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data,omitempty"`
	Time time.Time       `json:"-"` // QEMU's clock
}

// Events that callers act on.
const (
	EventShutdown       = "SHUTDOWN" // ShutdownData
	EventReset          = "RESET"
	EventStop           = "STOP"
	EventResume         = "RESUME"
	EventPowerdown      = "POWERDOWN"
	EventGuestPanicked  = "GUEST_PANICKED"
	EventDeviceDeleted  = "DEVICE_DELETED"            // DeviceData
	EventUnplugError    = "DEVICE_UNPLUG_GUEST_ERROR" // DeviceData
	EventRxFilter       = "NIC_RX_FILTER_CHANGED"     // RxFilterData
	EventPortChanged    = "VSERPORT_CHANGE"           // PortData
	EventBlockIOError   = "BLOCK_IO_ERROR"
	EventMigration      = "MIGRATION"       // MigrationData; only after the events capability is set
	EventBlockJobReady  = "BLOCK_JOB_READY" // a mirror has caught up
	EventBlockJobFailed = "BLOCK_JOB_ERROR"
	EventWatchdog       = "WATCHDOG"
)

// ShutdownData says who ended the guest.
type ShutdownData struct {
	Guest  bool           `json:"guest"`
	Reason ShutdownReason `json:"reason"`
}

// ShutdownReason is QEMU's ShutdownCause.
type ShutdownReason string

const (
	GuestShutdown ShutdownReason = "guest-shutdown" // the guest powered off
	GuestReset    ShutdownReason = "guest-reset"    // the guest rebooted and the machine does not reboot
	GuestPanic    ShutdownReason = "guest-panic"
	HostQuit      ShutdownReason = "host-qmp-quit"
	HostSignal    ShutdownReason = "host-signal"
	HostError     ShutdownReason = "host-error"
)

// DeviceData names a device that went away.
type DeviceData struct {
	Device string `json:"device"` // empty for devices without an id
	Path   string `json:"path"`
}

// RxFilterData names a NIC whose guest changed its MAC filter.
type RxFilterData struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// PortData says whether the guest holds a virtio-serial port open.
type PortData struct {
	ID   string `json:"id"`
	Open bool   `json:"open"`
}

// MigrationData is the new state of a migration.
type MigrationData struct {
	Status string `json:"status"`
}

// Decode reads the event's data.
func (e Event) Decode(into any) error {
	if err := json.Unmarshal(e.Data, into); err != nil {
		return fmt.Errorf("QEMU event %s has unexpected data: %w", e.Name, err)
	}
	return nil
}

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // ClassGeneric, …
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc) }

// Classes of Error.
const (
	ClassGeneric         = "GenericError"
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassCommandNotFound = "CommandNotFound"
)
