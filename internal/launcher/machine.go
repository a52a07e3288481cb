package launcher

import (
	"context"
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"patchbay/internal/qemu/qmp"
)

// setUp waits until QEMU answers and carries out the commands that precede the guest.
func (m *machine) setUp(commands []json.RawMessage) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTime)
	defer cancel()
	var err error
	if m.monitor, err = qmp.New(ctx, m.socket); err != nil {
		return err
	}
	for _, text := range commands {
		var command struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments,omitempty"`
		}
		if err := json.Unmarshal(text, &command); err != nil {
			return fmt.Errorf("a set-up command is not JSON: %w", err)
		}
		var args any
		if command.Arguments != nil {
			args = command.Arguments
		}
		if err := m.monitor.Execute(ctx, qmp.Command{Name: command.Execute, Args: args}, nil); err != nil {
			return err
		}
	}
	return nil
}

// whyNotReady explains a QEMU that did not become ready, and makes sure that it ends.
func (m *machine) whyNotReady(err error) string {
	m.kill()
	<-m.words.done // QEMU's end of the pipe is closed: its last words are complete
	if last := m.words.last(); last != "" {
		return "QEMU did not start: " + last
	}
	return "QEMU did not start: " + err.Error()
}

func (m *machine) lastWords() string {
	<-m.words.done
	return m.words.last()
}

// monitorTime bounds a monitor command in an ending.
const monitorTime = 2 * time.Second

// tell sends a command without caring for the answer: what matters is whether QEMU ends.
func (m *machine) tell(command func(qmp.Machine, context.Context) error) {
	if m.monitor == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), monitorTime)
	defer cancel()
	_ = command(qmp.Machine{Monitor: m.monitor}, ctx)
}

func (m *machine) powerdown() { m.tell(qmp.Machine.Powerdown) }
func (m *machine) announce()  { m.tell(qmp.Machine.Announce) }
func (m *machine) quit()      { m.tell(qmp.Machine.Quit) }

// kill ends QEMU at once. Its process number cannot be another's: it is collected by this process alone, which then ends.
func (m *machine) kill() { _ = syscall.Kill(m.pid, syscall.SIGKILL) }

// close gives back what the machine holds.
func (m *machine) close() {
	if m.carrier != nil {
		m.carrier.close()
	}
	if m.monitor != nil {
		m.monitor.Close()
	}
	if m.console != nil {
		m.console.close()
	}
}
