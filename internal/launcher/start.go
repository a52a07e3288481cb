package launcher

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"patchbay/internal/launcher/protocol"
	"patchbay/internal/launcher/userfault"
	"patchbay/internal/qemu/qmp"
)

// readyTime is how long QEMU may take until it answers its monitor.
const readyTime = 60 * time.Second

// start carries out a Start. It returns a machine when QEMU was run, even when the response says that it did not become ready: the main loop
// then sees it end.
func (l *Launcher) start(ctx context.Context, r request) (*machine, protocol.Response) {
	began := time.Now()
	values, err := l.prepare(ctx, r.start)
	if err != nil {
		return nil, l.fail(err.Error())
	}
	prepared := time.Now()
	run, err := l.runQEMU(r, values)
	if err != nil {
		return run, l.fail(err.Error())
	}
	l.set(protocol.Response{State: protocol.Running, ID: run.id, PID: run.pid, Since: time.Now()})
	if err := run.setUp(r.start.Setup); err != nil {
		return run, l.fail(run.whyNotReady(err))
	}
	if r.start.Passt != nil {
		if run.carrier, err = l.carry(*r.start.Passt, run.announce); err != nil {
			run.kill()
			return run, l.fail(err.Error())
		}
	}
	l.cfg.Log.Info("QEMU runs", "pid", run.pid, "disks", prepared.Sub(began), "qemu", time.Since(prepared))
	return run, l.now()
}

// prepare makes disks and seed, and returns what the arguments' placeholders stand for.
func (l *Launcher) prepare(ctx context.Context, start *protocol.Start) (map[string]string, error) {
	values := map[string]string{}
	for _, disk := range start.Disks {
		made, err := l.prepareDisk(ctx, disk)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", disk.ID, err)
		}
		values["{disk:"+disk.ID+"}"] = made.path
		values["{direct:"+disk.ID+"}"] = made.direct
	}
	if start.Seed != nil {
		seed, err := l.writeSeed(start.Seed)
		if err != nil {
			return nil, fmt.Errorf("cloud-init seed: %w", err)
		}
		values["{seed}"] = seed
	}
	for placeholder, inside := range map[string]string{"{kernel}": start.KernelPath, "{initrd}": start.InitrdPath} {
		if inside == "" {
			continue
		}
		// The path cannot leave the image's directory by dots; a symbolic link could, to files that the user may read anyway.
		file := path.Join(l.cfg.VolumesDir, protocol.KernelBootVolume, path.Join("/", inside))
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("the kernelBoot image has no file %s that user %d can read", inside, os.Getuid())
		}
		values[placeholder] = file
	}
	return values, nil
}

// runQEMU starts QEMU with the request's descriptors, a monitor of the launcher's own and a pipe for the serial console.
func (l *Launcher) runQEMU(r request, values map[string]string) (*machine, error) {
	console, err := openConsole(l.cfg.RunDir)
	if err != nil {
		return nil, err
	}
	run := &machine{id: r.start.ID, grace: time.Duration(r.start.GraceSeconds) * time.Second, console: console}
	ours, theirs, err := socketPair()
	if err != nil {
		run.close()
		return nil, err
	}
	defer theirs.Close()
	said, errorEnd, err := os.Pipe()
	if err != nil {
		ours.Close()
		run.close()
		return nil, err
	}
	defer errorEnd.Close()
	run.words = listen(said)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		run.close()
		return nil, err
	}
	defer null.Close()
	files := append([]*os.File{null, errorEnd, errorEnd}, r.files...)
	for i := range r.files {
		values[fmt.Sprintf("{fd:%d}", i)] = fmt.Sprint(firstFile + i)
	}
	args := expand(r.start.Args, values)
	args = append(args, "-chardev", fmt.Sprintf("socket,id=launcher,fd=%d", len(files)), "-mon", "chardev=launcher,mode=control")
	run.pid, run.status, err = l.children.start(l.cfg.QEMU, args, append(files, theirs), l.preload(r.start)...)
	if err != nil {
		ours.Close()
		run.close()
		return nil, err
	}
	run.socket = ours
	return run, nil
}

// firstFile is QEMU's number for the request's first descriptor: behind standard input, output and error.
const firstFile = 3

// preload is the environment of a QEMU that is to get its userfaultfd from a descriptor of the request.
func (l *Launcher) preload(start *protocol.Start) []string {
	if start.UserFault == nil {
		return nil
	}
	return []string{"LD_PRELOAD=" + l.cfg.UserFault, fmt.Sprintf("%s=%d", userfault.Variable, firstFile+*start.UserFault)}
}

// expand replaces placeholders. A path inside an option has its commas doubled.
func expand(args []string, values map[string]string) []string {
	var pairs []string
	for placeholder, value := range values {
		pairs = append(pairs, placeholder, strings.ReplaceAll(value, ",", ",,"))
	}
	inside := strings.NewReplacer(pairs...)
	out := make([]string, len(args))
	for i, arg := range args {
		if value, whole := values[arg]; whole {
			out[i] = value
		} else {
			out[i] = inside.Replace(arg)
		}
	}
	return out
}

// socketPair is a connected pair: our end for a monitor client, the other for QEMU to inherit.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the launcher's monitor: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	defer ours.Close() // FileConn has its own copy
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make the launcher's monitor: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// lastWords is what QEMU wrote last to its standard error.
type lastWords struct {
	text chan []byte // holds the text while nobody touches it
	done chan struct{}
}

// keepWords is how many bytes of QEMU's messages are kept.
const keepWords = 2 << 10

// listen copies what QEMU says to the launcher's standard error and keeps the end of it.
func listen(said *os.File) *lastWords {
	w := &lastWords{text: make(chan []byte, 1), done: make(chan struct{})}
	w.text <- nil
	go func() {
		defer close(w.done)
		defer said.Close()
		buffer := make([]byte, 1<<10)
		for {
			n, err := said.Read(buffer)
			if n > 0 {
				_, _ = os.Stderr.Write(buffer[:n])
				text := append(<-w.text, buffer[:n]...)
				w.text <- bytes.Clone(text[max(0, len(text)-keepWords):])
			}
			if err != nil {
				return
			}
		}
	}()
	return w
}

// last is the last line.
func (w *lastWords) last() string {
	text := <-w.text
	w.text <- text
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// machine is a running QEMU.
type machine struct {
	id      string
	pid     int
	grace   time.Duration
	status  <-chan syscall.WaitStatus
	words   *lastWords
	console *console
	socket  *net.UnixConn
	monitor *qmp.Client
	carrier *carrier
}

// done delivers QEMU's exit status. A nil machine never ends.
func (m *machine) done() <-chan syscall.WaitStatus {
	if m == nil {
		return nil
	}
	return m.status
}
