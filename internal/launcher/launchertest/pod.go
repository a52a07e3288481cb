// Package launchertest runs the real launcher as in a VM's pod: in a file system of its own, as user 107, without capabilities. It
// needs root, like every test of the data path, and leaves nothing behind.
package launchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/userfault"
)

// user is who a VM's pod runs as.
const user = 107

// Pod is a running launcher.
type Pod struct {
	Run     *client.RunDir
	RunPath string // on the host, of the directory behind Run
	Volumes string // the directory that the pod sees as /volumes
	Disks   string // … as /disks
	PID     int    // of the launcher, on the host

	command *exec.Cmd
	log     *lockedBuffer
	ended   chan struct{}
	code    int
}

// Config changes how a pod is made.
type Config struct {
	// SharedPIDs leaves the launcher in the host's process namespace, where it is not the first process.
	SharedPIDs bool
	// Netns is the path of the pod's network namespace; empty: the host's, where nothing must be opened.
	Netns string
}

// script builds the pod's root in a mount namespace of its own and becomes the launcher. The directories of the image are the host's.
const script = `set -e
root=$1 launcher=$2
mount -t tmpfs pod "$root"
cd "$root"
mkdir -p usr etc dev proc tmp run/patchbay disks volumes
for d in bin sbin lib lib64; do ln -s usr/$d $d; done
mount --rbind /usr usr
mount --rbind /etc etc
mount --rbind /dev dev
mount -t proc proc proc
mount --bind "$3" run/patchbay
mount --bind "$4" disks
mount --bind "$5" volumes
cp "$launcher" patchbay-launcher
cp "$(dirname "$launcher")/userfault.so" userfault.so
exec chroot . setpriv --reuid=107 --regid=107 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all /patchbay-launcher
`

// Start runs a launcher until the test ends.
func Start(t testing.TB, config Config) *Pod {
	t.Helper()
	dir := t.TempDir()
	p := &Pod{Volumes: filepath.Join(dir, "volumes"), Disks: filepath.Join(dir, "disks"), RunPath: filepath.Join(dir, "run"),
		log: &lockedBuffer{}, ended: make(chan struct{})}
	root := filepath.Join(dir, "root")
	for _, d := range []string{root, p.RunPath, p.Volumes, p.Disks} {
		must(t, os.Mkdir(d, 0o755))
		must(t, os.Chown(d, user, user))
	}
	args := []string{"unshare", "--mount", "--propagation", "private"}
	if config.Netns != "" {
		args = append([]string{"nsenter", "--net=" + config.Netns, "--no-fork"}, args...)
	}
	if !config.SharedPIDs {
		args = append(args, "--pid", "--fork")
	}
	args = append(args, "sh", "-c", script, "pod", root, binary(t), p.RunPath, p.Disks, p.Volumes)
	p.command = exec.Command(args[0], args[1:]...)
	p.command.Stdout, p.command.Stderr = p.log, p.log
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go p.run(started)
	must(t, <-started)
	t.Cleanup(func() { p.end(t) })
	var err error
	p.Run, err = client.Open(p.RunPath)
	must(t, err)
	p.PID = p.launcherPID(t, config)
	p.awaitLauncher(t)
	return p
}

// run keeps its thread: the signal that the parent's death sends is sent at the end of the thread that started the child.
func (p *Pod) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.command.Start()
	started <- err
	if err != nil {
		return
	}
	_ = p.command.Wait()
	status := p.command.ProcessState.Sys().(syscall.WaitStatus)
	p.code = status.ExitStatus()
	if status.Signaled() {
		p.code = 128 + int(status.Signal())
	}
	close(p.ended)
}

// end kills the launcher itself: the signal that its parent's death would send is lost when it changes its user.
func (p *Pod) end(t testing.TB) {
	select {
	case <-p.ended:
	default:
		if p.PID != 0 {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		_ = p.command.Process.Kill()
		<-p.ended
	}
	p.Run.Close()
	if t.Failed() {
		t.Logf("the launcher said:\n%s", p.Log())
	}
}

// awaitLauncher waits until the launcher answers.
func (p *Pod) awaitLauncher(t testing.TB) {
	t.Helper()
	Eventually(t, "the launcher answers", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := p.Run.Status(ctx)
		return err
	})
}

// launcherPID is the launcher's number on the host: the command itself, which became it, or its only child.
func (p *Pod) launcherPID(t testing.TB, config Config) int {
	t.Helper()
	own := p.command.Process.Pid
	if config.SharedPIDs {
		return own
	}
	pid := 0
	Eventually(t, "the pod's first process runs", func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", own, own))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	})
	return pid
}

// QEMUPID is QEMU's number on the host.
func (p *Pod) QEMUPID(t testing.TB) int {
	t.Helper()
	pid, err := p.Child("qemu-system")
	must(t, err)
	return pid
}

// Child is the number on the host of the launcher's child whose name begins so.
func (p *Pod) Child(name string) (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // that thread has ended
		}
		for _, child := range strings.Fields(string(text)) {
			comm, _ := os.ReadFile("/proc/" + child + "/comm")
			if strings.HasPrefix(string(comm), name) {
				return strconv.Atoi(child)
			}
		}
	}
	return 0, fmt.Errorf("the launcher has no child %s", name)
}

// Signal sends a signal to the launcher.
func (p *Pod) Signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	must(t, syscall.Kill(p.PID, signal))
}

// ExitCode waits for the end of the pod.
func (p *Pod) ExitCode(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.code
	case <-time.After(patience):
		t.Fatalf("the pod did not end in %v", patience)
		return 0
	}
}

// Log is what the launcher and QEMU printed.
func (p *Pod) Log() string { return p.log.String() }

// patience is how long something may take that normally takes a second: the machine may be busy.
const patience = 60 * time.Second

// Eventually tries until there is no error.
func Eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %v until %s: %v", patience, what, err)
		}
	}
}

// Gone says whether a process has ended.
func Gone(pid int) error {
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process %d is still there", pid)
	}
	return nil
}

var build struct {
	once sync.Once
	path string
	err  error
}

// binary builds the launcher once per test process.
func binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		dir, err := os.MkdirTemp("", "patchbay-launcher-test-")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "patchbay-launcher")
		command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", build.path, "patchbay/cmd/patchbay-launcher")
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the launcher: %w: %s", err, out)
			return
		}
		build.err = userfault.Compile(filepath.Join(dir, "userfault.so"))
	})
	must(t, build.err)
	return build.path
}

// Main runs a package's tests and removes what they share. Call it from TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	if build.path != "" {
		os.RemoveAll(filepath.Dir(build.path))
	}
	return code
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer collects output.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
