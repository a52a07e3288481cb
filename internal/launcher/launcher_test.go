package launcher_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qmp"
)

// start is the smallest machine: no guest, a monitor for the agent.
func start(id string, more ...string) protocol.Start {
	return protocol.Start{ID: id, GraceSeconds: 30, Args: append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "tcg,tb-size=32", "-m", "32M",
		"-chardev", "socket,id=qmp,path=/run/patchbay/qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	}, more...)}
}

func run(t *testing.T, pod *launchertest.Pod, s protocol.Start, files ...*os.File) protocol.Response {
	t.Helper()
	response, err := pod.Run.Start(t.Context(), s, files)
	if err != nil {
		t.Fatal(err)
	}
	if response.State != protocol.Running || response.ID != s.ID || response.PID == 0 {
		t.Fatalf("the launcher answers %+v, want a running QEMU", response)
	}
	return response
}

func monitor(t *testing.T, pod *launchertest.Pod) qmp.Machine {
	t.Helper()
	conn, err := pod.Run.Dial(t.Context(), protocol.QMPName)
	if err != nil {
		t.Fatal(err)
	}
	m, err := qmp.New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return qmp.Machine{Monitor: m}
}

func TestStartIsRepeatable(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	if response, err := pod.Run.Status(t.Context()); err != nil || response.State != protocol.Waiting {
		t.Fatalf("before the start: %+v, %v; want Waiting", response, err)
	}
	first := run(t, pod, start("one"))
	again := run(t, pod, start("one", "-this-would-fail"))
	if again.PID != first.PID || !again.Since.Equal(first.Since) {
		t.Errorf("the second Start answered %+v, the first %+v; want the same QEMU", again, first)
	}
	response, err := pod.Run.Start(t.Context(), start("two"), nil)
	var refusal *client.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, "runs the VM with the ID one") || response.ID != "one" {
		t.Errorf("another VM: %+v, %v; want a refusal that names the first", response, err)
	}
	if s, err := monitor(t, pod).Status(t.Context()); err != nil || !s.Running {
		t.Errorf("QEMU's state is %+v, %v; want running", s, err)
	}
}

func TestDescriptorsReachQEMU(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	taps := launchertest.Taps(t, 2)
	s := start("fds", "-netdev", "tap,id=n,fds={fd:0}:{fd:1},vhost=off", "-device", "virtio-net-pci,id=nic,netdev=n,mq=on,vectors=6,mac=02:00:00:00:00:07")
	s.Args = append(s.Args, "-S")
	s.Setup = append(s.Setup, []byte(`{"execute":"set_link","arguments":{"name":"nic","up":false}}`), []byte(`{"execute":"cont"}`))
	run(t, pod, s, taps...)
	m := monitor(t, pod)
	filter, err := m.RxFilter(t.Context(), "nic")
	if err != nil || filter.MainMAC != "02:00:00:00:00:07" {
		t.Errorf("the NIC's filter is %+v, %v; want its MAC", filter, err)
	}
	if s, err := m.Status(t.Context()); err != nil || !s.Running {
		t.Errorf("after the set-up the state is %+v, %v; want running", s, err)
	}
	var info string
	if err := m.Execute(t.Context(), qmp.Command{Name: "human-monitor-command", Args: map[string]any{"command-line": "info network"}}, &info); err != nil || !strings.Contains(info, "nic: index=0,type=nic") {
		t.Errorf("the network is %q, %v", info, err)
	}
	if fds := openTuns(t, pod.PID); fds != 0 {
		t.Errorf("the launcher still holds %d taps, want QEMU alone to hold them", fds)
	}
	if fds := openTuns(t, pod.QEMUPID(t)); fds != 2 {
		t.Errorf("QEMU holds %d taps, want 2", fds)
	}
}

func openTuns(t *testing.T, pid int) (count int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == "/dev/net/tun" {
			count++
		}
	}
	return count
}

func TestRequestsThatAreRefused(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	tap := launchertest.Taps(t, 1)
	for name, c := range map[string]struct {
		start protocol.Start
		files []*os.File
		want  string
	}{
		"no id":     {protocol.Start{}, nil, "has no ID"},
		"bad disk":  {protocol.Start{ID: "x", Disks: []protocol.Disk{{ID: "d", Kind: "tape"}}}, tap, `disks of kind "tape"`},
		"no kernel": {protocol.Start{ID: "x", KernelPath: "/vmlinuz"}, nil, "kernelBoot image has no file /vmlinuz"},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := pod.Run.Start(t.Context(), c.start, c.files)
			if err == nil || !strings.Contains(err.Error(), c.want) || response.State != protocol.Waiting {
				t.Errorf("got %+v, %v; want a refusal that says %q, and a launcher that still waits", response, err, c.want)
			}
		})
	}
	if _, err := pod.Run.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was started") {
		t.Errorf("Stop before Start: %v", err)
	}
	if fds := openTuns(t, pod.PID); fds != 0 {
		t.Errorf("the launcher keeps %d taps of refused requests", fds)
	}
	run(t, pod, start("x")) // a refusal leaves room for a better try
}

func TestQEMUThatDoesNotStartEndsThePod(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	_, err := pod.Run.Start(t.Context(), start("broken", "-device", "no-such-device"), nil)
	if err == nil || !strings.Contains(err.Error(), "'no-such-device' is not a valid device model name") {
		t.Errorf("got %v, want QEMU's own words", err)
	}
	if code := pod.ExitCode(t); code == 0 {
		t.Error("the pod succeeds though QEMU never ran")
	}
}

func TestStop(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	run(t, pod, start("s"))
	response, err := pod.Run.Stop(t.Context())
	if err != nil || response.State != protocol.Exited || response.ExitCode != 0 {
		t.Errorf("Stop answers %+v, %v; want Exited with 0", response, err)
	}
	if code := pod.ExitCode(t); code != 0 {
		t.Errorf("the pod ended with %d, want 0", code)
	}
}

// TestTermination asks pods to end. This machine has no guest: firmware does not obey the power button.
func TestTermination(t *testing.T) {
	for name, c := range map[string]struct {
		grace int64
		quit  bool
		code  int
	}{
		"no time":       {0, false, 143},
		"time runs out": {1, false, 143},
		"QEMU ends":     {30, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			pod := launchertest.Start(t, launchertest.Config{})
			s := start("t")
			s.GraceSeconds = c.grace
			run(t, pod, s)
			m := monitor(t, pod)
			events := m.Subscribe()
			pod.Signal(t, syscall.SIGTERM)
			if c.grace > 0 {
				if _, err := events.Until(t.Context(), func(e qmp.Event) bool { return e.Name == qmp.EventPowerdown }); err != nil {
					t.Fatal("the power button was not pressed:", err)
				}
			}
			if c.quit {
				if err := m.Quit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if code := pod.ExitCode(t); code != c.code {
				t.Errorf("the pod ended with %d, want %d", code, c.code)
			}
		})
	}
}

// TestHowGuestsEnd boots a sector that writes to one port of the board: a guest as small as can be.
func TestHowGuestsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		program string // mov dx, port; mov a(x|l), value; out dx, a; halt
		reason  qmp.ShutdownReason
		code    int
	}{
		"powers off": {"\xba\x04\x06\xb8\x00\x20\xef\xf4", qmp.GuestShutdown, 0}, // PM1a control of q35, S5
		"panics":     {"\xba\x05\x05\xb0\x01\xee\xf4", qmp.GuestPanic, 1},        // pvpanic
	} {
		t.Run(name, func(t *testing.T) {
			pod := launchertest.Start(t, launchertest.Config{})
			sector := make([]byte, 1<<20)
			copy(sector, c.program)
			copy(sector[510:], "\x55\xaa")
			if err := os.WriteFile(volume(t, pod, "root/disk/sector.img"), sector, 0o644); err != nil {
				t.Fatal(err)
			}
			s := start("end", "-device", "pvpanic", "-action", "panic=exit-failure", "-S", "-device", "virtio-blk-pci,drive=root,bootindex=1",
				"-blockdev", "driver=qcow2,node-name=root,file.driver=file,file.filename={disk:root}")
			s.Disks = []protocol.Disk{{ID: "root", Kind: protocol.Overlay, Source: "/volumes/root/disk"}}
			run(t, pod, s)
			m := monitor(t, pod)
			events := m.Subscribe()
			if err := m.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			event, err := events.Until(t.Context(), func(e qmp.Event) bool { return e.Name == qmp.EventShutdown })
			if err != nil {
				t.Fatal(err)
			}
			var data qmp.ShutdownData
			if err := event.Decode(&data); err != nil || data.Reason != c.reason {
				t.Errorf("the guest ended by %+v, %v; want %s", data, err, c.reason)
			}
			if code := pod.ExitCode(t); code != c.code {
				t.Errorf("the pod ended with %d, want %d", code, c.code)
			}
		})
	}
}

func TestTerminationBeforeStart(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	pod.Signal(t, syscall.SIGTERM)
	if code := pod.ExitCode(t); code != 0 {
		t.Errorf("a pod that ran nothing ended with %d, want 0", code)
	}
}

func TestKilledQEMUFailsThePod(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	run(t, pod, start("k"))
	if err := syscall.Kill(pod.QEMUPID(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := pod.ExitCode(t); code != 137 {
		t.Errorf("the pod ended with %d, want 137", code)
	}
	if !strings.Contains(pod.Log(), "QEMU was killed by signal 9") {
		t.Error("the log does not say why")
	}
}

// TestKilledLauncherTakesQEMUWithIt shares the host's processes: in a pod the kernel ends all of them with the first.
func TestKilledLauncherTakesQEMUWithIt(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{SharedPIDs: true})
	run(t, pod, start("k"))
	qemu := pod.QEMUPID(t)
	pod.Signal(t, syscall.SIGKILL)
	launchertest.Eventually(t, "QEMU is gone", func() error { return launchertest.Gone(qemu) })
}

// TestOrphansAreCollected makes a process whose parent ends first, in the pod's process namespace.
func TestOrphansAreCollected(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	out, err := exec.Command("nsenter", "--target", fmt.Sprint(pod.PID), "--pid", "sh", "-c", "(true &) ; (sleep 0.1 &)").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run(t, pod, start("o"))
	qemu := pod.QEMUPID(t)
	launchertest.Eventually(t, "only QEMU is left", func() error {
		for _, child := range children(t, pod.PID) {
			if child != qemu {
				return fmt.Errorf("process %d was not collected", child)
			}
		}
		return nil
	})
}

// children are the processes whose parent is pid.
func children(t *testing.T, pid int) (list []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // that thread has ended
		}
		for _, word := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, child)
		}
	}
	return list
}

// memory is what a process takes, in KiB.
func memory(t *testing.T, pid int) (rss, pss int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		switch fields := strings.Fields(line); {
		case len(fields) < 2:
		case fields[0] == "Rss:":
			rss, _ = strconv.Atoi(fields[1])
		case fields[0] == "Pss:":
			pss, _ = strconv.Atoi(fields[1])
		}
	}
	return rss, pss
}

// TestConsoleLog lets firmware print on the serial port.
func TestConsoleLog(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	run(t, pod, start("console", "-machine", "graphics=off", "-device", "isa-serial,chardev=serial0",
		"-chardev", "socket,id=serial0,path=/run/patchbay/serial0.sock,server=on,wait=off,logfile=/run/patchbay/serial0.pipe,logappend=on"))
	log := filepath.Join(pod.RunPath, protocol.ConsoleLog)
	launchertest.Eventually(t, "the log holds what firmware says", func() error {
		text, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(text), "SeaBIOS") {
			err = fmt.Errorf("it holds %q", text)
		}
		return err
	})
}

func TestMemory(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	run(t, pod, start("m"))
	rss, pss := memory(t, pod.PID)
	t.Logf("launcher: RSS %d KiB, PSS %d KiB", rss, pss)
	if pss > 8<<10 {
		t.Errorf("the launcher takes %d KiB, want at most 8 MiB", pss)
	}
}

// TestTimes tells what a start costs; the bound is generous, machines that run tests are busy.
func TestTimes(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	s := start("t")
	s.Disks = []protocol.Disk{{ID: "root", Kind: protocol.Empty, SizeBytes: 1 << 30}}
	began := time.Now()
	run(t, pod, s)
	took := time.Since(began)
	t.Logf("Start with one disk to QEMU's monitor answering: %v", took)
	if took > 20*time.Second {
		t.Errorf("a start took %v", took)
	}
}
