package guest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// guests is where "make image" leaves disks and kernels.
const guests = "../../build/guests"

// machine is a running QEMU.
type machine struct {
	t       *testing.T
	dir     string
	started time.Time
	exited  chan struct{} // closed when QEMU ended

	mu     sync.Mutex
	serial bytes.Buffer
	in     io.Writer

	monitor *peer
}

// nicOf is QEMU's NIC on the n-th file that QEMU inherits.
type nicOf struct {
	mac  string
	file *os.File
}

// boot starts QEMU with the machine type, CPU and devices that launchers use.
func boot(t *testing.T, nics []nicOf, args ...string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), exited: make(chan struct{})}
	base := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256", "-serial", "stdio",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + m.path("qga.sock") + ",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-qmp", "unix:" + m.path("qmp.sock") + ",server=on,wait=off",
		"-device", "pcie-root-port,id=spare,chassis=9",
	}
	cmd := exec.Command("qemu-system-x86_64", append(base, args...)...)
	for i, n := range nics {
		cmd.ExtraFiles = append(cmd.ExtraFiles, n.file)
		if n.mac != "" { // else it is for hot plug
			cmd.Args = append(cmd.Args, "-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, 3+i), "-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=,host_mtu=1450", i, n.mac))
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.run(cmd)
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) run(cmd *exec.Cmd) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if m.in, err = cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	m.started = time.Now()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // QEMU is killed when the thread that started it ends
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		io.Copy(writerFunc(m.record), out) //nolint:errcheck // ends with QEMU
		cmd.Wait()                         //nolint:errcheck // killed at the end
		close(m.exited)
	}()
	if err := <-started; err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		<-m.exited
		if m.t.Failed() {
			m.t.Logf("serial console:\n%s", m.text())
		}
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (m *machine) record(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.Write(p)
}

func (m *machine) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.String()
}

// waitFor waits for words on the serial console and returns how long they took from the start.
func (m *machine) waitFor(words string, limit time.Duration) time.Duration {
	m.t.Helper()
	within(m.t, limit, fmt.Sprintf("%q on the console", words), func() error {
		if !strings.Contains(m.text(), words) {
			return errors.New("not there")
		}
		return nil
	})
	return time.Since(m.started)
}

// peer is QEMU's monitor or the guest agent: JSON lines over a unix socket.
type peer struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialPeer(path string) (*peer, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return &peer{c, bufio.NewReader(c)}, nil
}

// call sends a command and reads lines until the answer.
func (p *peer) call(command string, arguments any, out any) error {
	p.conn.SetDeadline(time.Now().Add(5 * time.Second)) //nolint:errcheck // a unix socket has deadlines
	line, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	if _, err := p.conn.Write(append(line, '\n')); err != nil {
		return err
	}
	for {
		answer, err := p.in.ReadBytes('\n')
		if err != nil {
			return err
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(bytes.TrimLeft(answer, "\xff"), &reply); err != nil {
			return err
		}
		switch {
		case reply.Error != nil:
			return errors.New(reply.Error.Desc)
		case reply.Return != nil && out != nil:
			return json.Unmarshal(reply.Return, out)
		case reply.Return != nil:
			return nil
		}
	}
}

func (m *machine) qmp(command string, arguments any) {
	m.t.Helper()
	if m.monitor == nil {
		p, err := dialPeer(m.path("qmp.sock"))
		if err != nil {
			m.t.Fatal(err)
		}
		m.monitor = p
		m.t.Cleanup(func() { p.conn.Close() })
		m.qmp("qmp_capabilities", map[string]any{})
	}
	if err := m.monitor.call(command, arguments, nil); err != nil {
		m.t.Fatalf("QMP %s: %v", command, err)
	}
}

// agent calls the guest agent until it answers.
func (m *machine) agent(command string, arguments, out any, limit time.Duration) {
	m.t.Helper()
	within(m.t, limit, "guest agent: "+command, func() error {
		p, err := dialPeer(m.path("qga.sock"))
		if err != nil {
			return err
		}
		defer p.conn.Close()
		return p.call(command, arguments, out)
	})
}

// addresses asks the guest agent for the addresses of an interface.
func (m *machine) addresses(name string) []string {
	m.t.Helper()
	var interfaces []struct {
		Name      string
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int
		} `json:"ip-addresses"`
	}
	m.agent("guest-network-get-interfaces", map[string]any{}, &interfaces, 30*time.Second)
	var out []string
	for _, i := range interfaces {
		if i.Name != name {
			continue
		}
		for _, a := range i.Addresses {
			out = append(out, fmt.Sprintf("%s/%d", a.Address, a.Prefix))
		}
	}
	return out
}

// hasAddresses waits until an interface has all of these.
func (m *machine) hasAddresses(name string, limit time.Duration, want ...string) {
	m.t.Helper()
	within(m.t, limit, "addresses of "+name, func() error {
		have := m.addresses(name)
		for _, w := range want {
			if !slices.Contains(have, w) {
				return fmt.Errorf("have %v, want %s", have, w)
			}
		}
		return nil
	})
}

// disk is QEMU's arguments for a guest's disk; writes go to a temporary file.
func disk(t *testing.T, name string) []string {
	t.Helper()
	file := filepath.Join(guests, name)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v; run \"make image\" first", err)
	}
	return []string{"-drive", "file=" + file + ",if=none,id=root,snapshot=on", "-device", "virtio-blk-pci,drive=root,bootindex=1"}
}
