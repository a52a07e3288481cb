package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"patchbay/internal/launcher/protocol"
)

// Config says where things are. In a pod these are protocol's constants and QEMU's usual paths.
type Config struct {
	RunDir, DiskDir, VolumesDir string
	QEMU, QEMUImg, Passt        string
	// UserFault is the path of the library of package userfault.
	UserFault string
	Log       *slog.Logger
}

// exitCutOff is the launcher's exit code when the guest had to be cut off after SIGTERM: 128 + SIGTERM.
const exitCutOff = 128 + int(syscall.SIGTERM)

// Launcher runs one QEMU.
type Launcher struct {
	cfg      Config
	children *children
	requests chan request
	digests  digests

	mu    sync.Mutex
	state protocol.Response
}

// request is what a connection asks of the main loop.
type request struct {
	start *protocol.Start
	files []*os.File
	stop  bool
	done  chan<- protocol.Response
}

// New makes a launcher that has not begun.
func New(cfg Config) *Launcher {
	return &Launcher{cfg: cfg, children: newChildren(), requests: make(chan request),
		state: protocol.Response{State: protocol.Waiting, Since: time.Now()}}
}

// Run serves the agent until QEMU ends, and returns the exit code of the process. The end of ctx is the pod's end: the guest is asked to power down.
// Run must be called on a locked OS thread that lives as long as the process: QEMU dies with the thread that started it.
func (l *Launcher) Run(ctx context.Context) (int, error) {
	listener, err := l.listen()
	if err != nil {
		return 1, err
	}
	var connections sync.WaitGroup
	background, cancel := context.WithCancel(context.Background())
	defer connections.Wait()
	defer cancel()
	connections.Go(func() { l.children.reap(background) })
	connections.Go(func() { l.serve(background, listener, &connections) })
	return l.loop(ctx)
}

func (l *Launcher) listen() (*net.UnixListener, error) {
	path := filepath.Join(l.cfg.RunDir, protocol.SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make room for the launcher's socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the agent: %w", err)
	}
	return listener, nil
}

// loop carries out requests one after another until QEMU has ended.
func (l *Launcher) loop(ctx context.Context) (int, error) {
	var run *machine
	var ending ending
	defer ending.close()
	terminate := ctx.Done()
	for {
		select {
		case r := <-l.requests:
			switch {
			case r.stop && run != nil:
				ending.stop(run)
				ending.answer = append(ending.answer, r.done)
			case r.stop:
				r.done <- l.fail("nothing was started; delete the pod to end it")
			case run != nil:
				r.done <- l.repeated(r)
			default:
				var response protocol.Response
				run, response = l.start(ctx, r)
				r.done <- response
			}
			closeAll(r.files)
		case <-terminate:
			terminate = nil
			if run == nil {
				return 0, nil
			}
			l.cfg.Log.Info("the pod is told to end; asking the guest to power down", "seconds", run.grace.Seconds())
			ending.powerdown(run)
		case <-ending.again():
			ending.powerdownAgain(run)
		case <-ending.late():
			l.cfg.Log.Warn("the guest did not power down in time and is cut off")
			ending.cutOff(run)
		case status := <-run.done():
			return l.exited(run, status, &ending), nil
		}
	}
}

// repeated answers a second Start.
func (l *Launcher) repeated(r request) protocol.Response {
	now := l.now()
	if now.ID != r.start.ID {
		return l.fail(fmt.Sprintf("this pod runs the VM with the ID %s; start another VM in a pod of its own", now.ID))
	}
	return now
}

// exited records the end of QEMU and returns the launcher's exit code.
func (l *Launcher) exited(run *machine, status syscall.WaitStatus, ending *ending) int {
	code := exitCode(status)
	l.set(protocol.Response{State: protocol.Exited, ID: run.id, ExitCode: code, Since: time.Now()})
	for _, done := range ending.answer {
		done <- l.now()
	}
	run.close()
	switch {
	case ending.wasCutOff:
		return exitCutOff
	case code < 0:
		l.explain(fmt.Sprintf("QEMU was killed by signal %d. %s", -code, run.lastWords()))
		return 128 - code
	case code > 0:
		l.explain(fmt.Sprintf("QEMU ended with exit code %d. %s", code, run.lastWords()))
	default:
		l.cfg.Log.Info("the guest has powered off")
	}
	return code
}

// explain tells why, also to whoever describes the pod.
func (l *Launcher) explain(reason string) {
	l.cfg.Log.Error(reason)
	const terminationLog = "/dev/termination-log"
	if _, err := os.Stat(terminationLog); err == nil {
		_ = os.WriteFile(terminationLog, []byte(reason+"\n"), 0o600)
	}
}

// exitCode is the status as the protocol has it: negative for a signal.
func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return -int(status.Signal())
	}
	return status.ExitStatus()
}

func (l *Launcher) now() protocol.Response {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *Launcher) set(state protocol.Response) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
}

// fail is the state with the reason why a request was not carried out.
func (l *Launcher) fail(reason string) protocol.Response {
	response := l.now()
	response.Error = reason
	return response
}

func closeAll(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}
