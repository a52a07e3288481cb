package vmdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qmp"
	"patchbay/internal/qemu/qmp/qmptest"
)

// fakePod is the inside of a launcher's pod: a launcher and, once it was started, a QEMU, behind real sockets.
type fakePod struct {
	dir *client.RunDir

	mu       sync.Mutex
	state    protocol.State
	exitCode int
	starts   int
	files    int // descriptors of the last start
	args     string
	refusal  string
	stopped  bool
	runState string
	commands []string // of the monitor, without questions
	monitor  net.Conn
	deaf     bool // to the power button
	onEnd    func()
	machine  *qmptest.Fake // its devices
}

func newFakePod(t *testing.T, dir string) *fakePod {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run, err := client.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Close() })
	ports := []string{"port1", "port2", "port3", "port4", "port5"}
	p := &fakePod{dir: run, state: protocol.Waiting, runState: "running", machine: qmptest.New(ports...)}
	p.machine.Obedient = true
	p.forwardEvents(t)
	p.listen(t, protocol.SocketName, p.serveLauncher)
	p.listen(t, protocol.QMPName, p.serveMonitor)
	p.listen(t, protocol.AgentName, func(conn net.Conn) { bufio.NewReader(conn).ReadString(0) })
	return p
}

func (p *fakePod) listen(t *testing.T, name string, serve func(net.Conn)) {
	t.Helper()
	listener, err := net.Listen("unix", p.dir.Path(name)) // the whole path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { listener.Close(); p.hangUp(); serving.Wait() })
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer conn.Close(); serve(conn) })
		}
	})
}

func (p *fakePod) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.monitor != nil {
		p.monitor.Close()
	}
}

func (p *fakePod) serveLauncher(conn net.Conn) {
	line, control := make([]byte, 1<<20), make([]byte, 4096)
	n, controls, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(line, control)
	if err != nil {
		return
	}
	var request protocol.Request
	if json.Unmarshal(line[:n], &request) != nil {
		return
	}
	files := closeFiles(control[:controls])
	p.mu.Lock()
	response := protocol.Response{}
	end := false
	switch {
	case request.Start != nil && p.refusal != "":
		response.Error = p.refusal
	case request.Start != nil:
		p.starts++
		p.files, p.args = files, strings.Join(request.Start.Args, " ")
		p.build(request.Start.Args)
		p.state = protocol.Running
	case request.Stop != nil && p.state == protocol.Running:
		p.stopped, end = true, true
	case request.Stop != nil:
		response.Error = "nothing was started; delete the pod to end it"
	}
	response.State, response.ExitCode = p.state, p.exitCode
	p.mu.Unlock()
	if end {
		p.end("host-qmp-quit", 0)
	}
	json.NewEncoder(conn).Encode(response)
}

func closeFiles(control []byte) int {
	count := 0
	messages, _ := syscall.ParseSocketControlMessage(control)
	for _, m := range messages {
		fds, _ := syscall.ParseUnixRights(&m)
		for _, fd := range fds {
			syscall.Close(fd)
			count++
		}
	}
	return count
}

// serveMonitor answers like QEMU.
func (p *fakePod) serveMonitor(conn net.Conn) {
	p.mu.Lock()
	p.monitor = conn
	p.mu.Unlock()
	conn.Write([]byte(`{"QMP":{"version":{},"capabilities":[]}}` + "\n"))
	in := bufio.NewScanner(conn) // descriptors are lost on the way, which QEMU's own end of the socket would close too
	for in.Scan() {
		var command struct {
			Execute   string
			Arguments map[string]any
			ID        string
		}
		if json.Unmarshal(in.Bytes(), &command) != nil {
			return
		}
		value, err := p.execute(command.Execute, command.Arguments)
		answer := map[string]any{"id": command.ID, "return": value}
		if err != nil {
			answer = map[string]any{"id": command.ID, "error": err}
		}
		p.mu.Lock()
		json.NewEncoder(conn).Encode(answer)
		p.mu.Unlock()
		p.after(command.Execute)
	}
}

// forwardEvents sends what the devices report to whoever holds the monitor.
func (p *fakePod) forwardEvents(t *testing.T) {
	events := p.machine.Subscribe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			event, err := events.Next(context.Background())
			if err != nil {
				return
			}
			p.tell(event.Name, string(event.Data))
		}
	}()
	t.Cleanup(func() { p.machine.Close(); <-done })
}

// monitorCommand does what an agent did before it was killed: a command and its arguments.
func (p *fakePod) monitorCommand(t *testing.T, line string) {
	t.Helper()
	name, text, _ := strings.Cut(line, " ")
	args := map[string]any{}
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		t.Fatal(err)
	}
	if err := p.machine.Execute(t.Context(), qmp.Command{Name: name, Args: args, File: os.Stdin}, nil); err != nil {
		t.Fatal(err)
	}
}

// build makes the network cards of a command line.
func (p *fakePod) build(args []string) {
	for _, arg := range args {
		if !strings.Contains(arg, "id=nic-") {
			continue
		}
		device := map[string]any{}
		driver, rest, _ := strings.Cut(arg, ",")
		for option := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(option, "=")
			device[key] = value
		}
		device["driver"] = driver
		p.machine.Execute(context.Background(), qmp.Command{Name: "netdev_add", Args: map[string]any{"id": device["netdev"], "type": "tap"}}, nil)
		p.machine.Execute(context.Background(), qmp.Command{Name: "device_add", Args: device}, nil)
	}
}

func (p *fakePod) execute(name string, arguments map[string]any) (value any, refusal *qmp.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch name {
	case "query-status":
		return map[string]any{"status": p.runState, "running": p.runState == "running"}, nil
	case "query-chardev":
		return []map[string]any{{"label": agentChardev, "frontend-open": false}}, nil
	case "qmp_capabilities":
	case "getfd", "closefd", "netdev_add", "netdev_del", "device_add", "device_del", "set_link", "qom-list", "qom-get", "query-rx-filter", "query-migrate":
		err := p.machine.Execute(context.Background(), qmp.Command{Name: name, Args: arguments, File: os.Stdin}, &value)
		errors.As(err, &refusal)
		return value, refusal
	case "set-action":
		p.commands = append(p.commands, name+" shutdown="+arguments["shutdown"].(string))
	default:
		p.commands = append(p.commands, name)
	}
	return map[string]any{}, nil
}

// after is what QEMU reports after a command.
func (p *fakePod) after(command string) {
	switch command {
	case "stop":
		p.become("paused", "STOP")
	case "cont":
		p.become("running", "RESUME")
	case "system_powerdown":
		p.mu.Lock()
		deaf := p.deaf
		reboot := slices.Contains(p.commands, "set-action shutdown=pause")
		p.mu.Unlock()
		switch {
		case deaf:
		case reboot:
			p.tell("SHUTDOWN", `{"guest":true,"reason":"guest-shutdown"}`)
			p.become("shutdown", "STOP")
		default:
			p.end("guest-shutdown", 0)
		}
	}
}

func (p *fakePod) become(state, event string) {
	p.mu.Lock()
	p.runState = state
	p.mu.Unlock()
	p.tell(event, "{}")
}

func (p *fakePod) tell(event, data string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.monitor != nil {
		p.monitor.Write([]byte(`{"event":"` + event + `","data":` + data + `,"timestamp":{"seconds":1,"microseconds":0}}` + "\n"))
	}
}

// end is QEMU's end; an empty reason is one that it does not live to report.
func (p *fakePod) end(reason string, exitCode int) {
	if reason != "" {
		p.tell("SHUTDOWN", `{"guest":true,"reason":"`+reason+`"}`)
	}
	p.mu.Lock()
	p.state, p.exitCode = protocol.Exited, exitCode
	onEnd := p.onEnd
	p.mu.Unlock()
	p.hangUp()
	if onEnd != nil {
		onEnd()
	}
}

func (p *fakePod) did() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.commands)
}

// fakeWirer gives out pipes as taps.
type fakeWirer struct {
	mu      sync.Mutex
	opened  int
	freshen int
	serving int
	left    int
	err     error
}

func (w *fakeWirer) Open(_ context.Context, nic NIC) (*Wired, error) {
	w.mu.Lock()
	defer w.mu.Unlock()

	if w.err != nil {
		return nil, w.err
	}
	w.opened++
	a, b, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.Close()
	wired := w.wired(nic)
	wired.Files = []*os.File{a}
	return wired, nil
}

// Leave implements Leaver.
func (w *fakeWirer) Leave(context.Context, NIC) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left++
	return nil
}

func (w *fakeWirer) Refresh(_ context.Context, nic NIC) (*Wired, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freshen++
	return w.wired(nic), w.err
}

func (w *fakeWirer) wired(nic NIC) *Wired {
	return &Wired{
		MAC: nic.MAC, MTU: 1400, Offloads: true, IPs: []netip.Addr{netip.MustParseAddr("10.128.0.5")}, PodInterface: "eth0",
		Serve: func(ctx context.Context) {
			w.count(1)
			<-ctx.Done()
			w.count(-1)
		},
	}
}

func (w *fakeWirer) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serving += n
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
		<-tick.C
	}
}
