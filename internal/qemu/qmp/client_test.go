package qmp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"patchbay/internal/qemu/qmp"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}`

// serve is a monitor that plays a script: each step reads a line, gives it to the step and sends what it returns.
func serve(t *testing.T, first string, steps ...func(line string) string) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	ok(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, first)
		in := bufio.NewReader(conn)
		for _, step := range steps {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(conn, step(line))
		}
		_, _ = in.ReadString('\n') // until the client goes
	})
	conn, err := net.Dial("unix", path)
	ok(t, err)
	t.Cleanup(func() { conn.Close(); listener.Close(); serving.Wait() })
	return conn.(*net.UnixConn)
}

func say(text string) func(string) string { return func(string) string { return text } }

// agree answers the negotiation of capabilities.
var agree = say(`{"return": {}, "id": "1"}` + "\n")

func TestRepliesFindTheirCommands(t *testing.T) {
	held := ""
	conn := serve(t, greeting+"\n", agree,
		func(line string) string { held = strings.Split(strings.Split(line, `"id":"`)[1], `"`)[0]; return "" },
		func(line string) string {
			id := strings.Split(strings.Split(line, `"id":"`)[1], `"`)[0]
			late := fmt.Sprintf(`{"return": "%s", "id": "nobody"}`, "stray")
			return fmt.Sprintf("%s\n{\"return\": \"for %s\", \"id\": \"%s\"}\n{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 5, \"microseconds\": 6}}\n{\"return\": \"for %s\", \"id\": \"%s\"}\n", late, id, id, held, held)
		})
	c, err := qmp.New(t.Context(), conn)
	ok(t, err)
	defer c.Close()
	events := c.Subscribe()
	var waiting sync.WaitGroup
	for range 2 {
		waiting.Go(func() {
			var reply string
			if err := c.Execute(t.Context(), qmp.Command{Name: "x"}, &reply); err != nil || !strings.HasPrefix(reply, "for ") {
				t.Errorf("got %q, %v", reply, err)
			}
		})
	}
	waiting.Wait()
	if event := await(t, events, "STOP"); !event.Time.Equal(time.Unix(5, 6000)) {
		t.Errorf("the event's time is %v", event.Time)
	}
}

func TestBrokenMonitors(t *testing.T) {
	for name, c := range map[string]struct {
		first string
		steps []func(string) string
		want  string
	}{
		"hangs up":        {"", []func(string) string{}, "did not greet"},
		"not QMP":         {"SSH-2.0-x\n", nil, "not QMP"},
		"no capabilities": {greeting + "\n", []func(string) string{say(`{"error": {"class": "GenericError", "desc": "no"}, "id": "1"}` + "\n")}, "QEMU refused qmp_capabilities: no"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := qmp.New(ctx, serve(t, c.first, c.steps...)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error that says %q", err, c.want)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	c, err := qmp.New(t.Context(), serve(t, greeting+"\n"+greeting+"\n", agree, say(""), say(`{"return": {"status": "running", "running": true}, "id": "3"}`+"\n")))
	ok(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	m := qmp.Machine{Monitor: c}
	if err := m.Powerdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	status(t, m, "running") // the connection is still good
}

// TestFullPipe fills the buffers of a monitor that does not read. The command that was cut short ends the connection.
func TestFullPipe(t *testing.T) {
	c, err := qmp.New(t.Context(), serve(t, greeting+"\n", agree, func(string) string { <-t.Context().Done(); return "" }))
	ok(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = c.Execute(ctx, qmp.Command{Name: "first"}, nil)
	err = c.Execute(ctx, qmp.Command{Name: "second", Args: map[string]string{"much": strings.Repeat("x", 8<<20)}}, nil)
	if err == nil {
		t.Fatal("a monitor that does not read took 8 MiB")
	}
	<-c.Done()
	if !strings.Contains(c.Err().Error(), "cut short") {
		t.Errorf("the connection ended with %v", c.Err())
	}
}

// TestMonitorServesOneClientAfterTheOther is what an agent relies on that was killed and comes back.
func TestMonitorServesOneClientAfterTheOther(t *testing.T) {
	path := startQEMU(t)
	first := dial(t, path)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(short, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second client beside the first: %v, want it to wait", err)
	}
	ok(t, first.Close())
	if _, err := first.Subscribe().Next(t.Context()); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("a closed client's subscription ends with %v", err)
	}
	status(t, qmp.Machine{Monitor: dial(t, path)}, "running")
}

func TestAgentOpen(t *testing.T) {
	m := qmp.Machine{Monitor: dial(t, startQEMU(t))}
	if _, err := m.AgentOpen(t.Context(), "qga"); err == nil || !strings.Contains(err.Error(), "no character device qga") {
		t.Errorf("got %v", err)
	}
}
