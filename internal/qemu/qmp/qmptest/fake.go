// Package qmptest holds a monitor that behaves like a QEMU with PCI root ports and network cards, without one. It knows the commands
// that qmp.Machine sends; the contract test of package qmp holds it to what the real QEMU does.
package qmptest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"patchbay/internal/qemu/qmp"
)

// Fake is a qmp.Monitor without a QEMU.
type Fake struct {
	// Obedient makes the guest release devices at once when it is asked. Otherwise it does so at the next reset.
	Obedient bool

	feed qmp.Feed
	done chan struct{}

	mu      sync.Mutex
	state   string
	ports   []string
	devices map[string]*device
	netdevs map[string]string // id to a description
	files   map[string]bool   // held by name
	err     error
}

type device struct {
	driver, bus, netdev, mac string
	down                     bool // no carrier
	leaving                  bool // asked to go
}

var _ qmp.Monitor = (*Fake)(nil)

// New is a running machine with empty root ports.
func New(ports ...string) *Fake {
	return &Fake{done: make(chan struct{}), state: "running", ports: ports,
		devices: map[string]*device{}, netdevs: map[string]string{}, files: map[string]bool{}}
}

// Emit makes an event.
func (f *Fake) Emit(name string, data any) {
	text, _ := json.Marshal(data) // the caller's own types
	f.feed.Publish(qmp.Event{Name: name, Data: text, Time: time.Unix(0, 0)})
}

// Dump is the machine as text.
func (f *Fake) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "status %s\n", f.state)
	for _, id := range slices.Sorted(maps.Keys(f.netdevs)) {
		fmt.Fprintf(&b, "netdev %s: %s\n", id, f.netdevs[id])
	}
	for _, id := range slices.Sorted(maps.Keys(f.devices)) {
		d := f.devices[id]
		fmt.Fprintf(&b, "device %s: %s in %s, netdev %s, mac %s", id, d.driver, d.bus, d.netdev, d.mac)
		if d.down {
			b.WriteString(", link down")
		}
		if d.leaving {
			b.WriteString(", asked to leave")
		}
		b.WriteByte('\n')
	}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		fmt.Fprintf(&b, "file %s\n", name)
	}
	return b.String()
}

// Execute implements qmp.Monitor.
func (f *Fake) Execute(ctx context.Context, command qmp.Command, result any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("QEMU did not answer %s: %w", command.Name, err)
	}
	args, err := arguments(command)
	if err != nil {
		return err
	}
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return fmt.Errorf("QEMU %s: %w", command.Name, f.err)
	}
	value, events, refusal := f.carryOut(command, args)
	f.mu.Unlock()
	for _, event := range events {
		f.Emit(event.name, event.data)
	}
	if refusal != nil {
		refusal.Command = command.Name
		return refusal
	}
	if command.Name == "quit" {
		f.end(fmt.Errorf("the connection to QEMU ended"))
	}
	return deliver(value, result)
}

// arguments are the command's arguments as QEMU sees them, after JSON.
func arguments(command qmp.Command) (map[string]any, error) {
	text, err := json.Marshal(command.Args)
	if err != nil {
		return nil, err
	}
	var args map[string]any
	return args, json.Unmarshal(text, &args)
}

func deliver(value, result any) error {
	if result == nil {
		return nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, result)
}

type event struct {
	name string
	data any
}

func refuse(class, format string, args ...any) *qmp.Error {
	return &qmp.Error{Class: class, Desc: fmt.Sprintf(format, args...)}
}

type object = map[string]any

// carryOut changes the state and tells what follows.
func (f *Fake) carryOut(command qmp.Command, args object) (value any, events []event, refusal *qmp.Error) {
	text := func(key string) string { s, _ := args[key].(string); return s }
	switch command.Name {
	case "query-status":
		return qmp.Status{Running: f.state == "running", State: f.state}, nil, nil
	case "stop":
		f.state = "paused"
		return nil, []event{{qmp.EventStop, object{}}}, nil
	case "cont":
		f.state = "running"
		return nil, []event{{qmp.EventResume, object{}}}, nil
	case "system_powerdown":
		return nil, []event{{qmp.EventPowerdown, object{}}}, nil
	case "system_reset":
		return nil, append(f.releaseAll(), event{qmp.EventReset, object{"guest": false, "reason": "host-qmp-system-reset"}}), nil
	case "quit":
		return nil, []event{{qmp.EventShutdown, qmp.ShutdownData{Reason: qmp.HostQuit}}}, nil
	case "getfd":
		if command.File == nil {
			return nil, nil, refuse(qmp.ClassGeneric, "No file descriptor supplied via SCM_RIGHTS")
		}
		f.files[text("fdname")] = true
	case "closefd":
		if !f.files[text("fdname")] {
			return nil, nil, refuse(qmp.ClassGeneric, "File descriptor named '%s' not found", text("fdname"))
		}
		delete(f.files, text("fdname"))
	case "netdev_add":
		return nil, nil, f.addNetdev(args)
	case "netdev_del":
		return nil, nil, f.deleteNetdev(text("id"))
	case "device_add":
		return nil, nil, f.addDevice(args)
	case "device_del":
		events, refusal = f.askToLeave(text("id"))
		return nil, events, refusal
	case "set_link":
		return nil, nil, f.setLink(text("name"), args["up"] == true)
	case "qom-list":
		return f.list(), nil, nil
	case "qom-get":
		return f.parentBus(path.Base(text("path")))
	case "query-rx-filter":
		return f.filter(text("name"))
	default:
		return nil, nil, refuse(qmp.ClassCommandNotFound, "The command %s has not been found", command.Name)
	}
	return object{}, nil, nil
}

// Subscribe implements qmp.Monitor.
func (f *Fake) Subscribe() *qmp.Subscription { return f.feed.Subscribe() }

// Done implements qmp.Monitor.
func (f *Fake) Done() <-chan struct{} { return f.done }

// Err implements qmp.Monitor.
func (f *Fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Close implements qmp.Monitor.
func (f *Fake) Close() error {
	f.end(qmp.ErrClosed)
	return nil
}

func (f *Fake) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		close(f.done)
		f.feed.End(err)
	}
}
