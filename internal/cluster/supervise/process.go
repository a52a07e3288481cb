package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies one process of the host for good: a number alone is used again.
type Process struct {
	PID int `json:"pid"`
	// StartTicks is when it started, in clock ticks after the boot (field 22 of /proc/PID/stat).
	StartTicks uint64    `json:"startTicks"`
	Boot       string    `json:"boot"` // identifies the boot
	Started    time.Time `json:"started"`
}

// ticksPerSecond is the unit of times in /proc on every architecture of Linux that we run on.
const ticksPerSecond = 100

// bootID identifies the running boot of the host.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot's identity: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Identify describes a running process.
func Identify(pid int) (Process, error) {
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	ticks, err := startTicks(pid)
	if err != nil {
		return Process{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return Process{}, err
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*time.Second/ticksPerSecond
	return Process{PID: pid, StartTicks: ticks, Boot: boot, Started: time.Now().Add(-age)}, nil
}

// Alive tells whether the very process still runs. A zombie does not.
func (p *Process) Alive() bool {
	if p == nil || p.PID <= 0 {
		return false
	}
	boot, err := bootID()
	if err != nil || boot != p.Boot {
		return false
	}
	ticks, err := startTicks(p.PID)
	return err == nil && ticks == p.StartTicks
}

var errZombie = errors.New("the process has ended")

func startTicks(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTicks(string(data))
}

// parseStartTicks reads the text of /proc/PID/stat. The second field is the program's name in brackets and may hold anything.
func parseStartTicks(stat string) (uint64, error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("/proc/PID/stat has no program name")
	}
	fields := strings.Fields(stat[end+1:])
	const state, start = 0, 19 // third and twenty-second field of the whole line
	if len(fields) <= start {
		return 0, errors.New("/proc/PID/stat is too short")
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return 0, errZombie
	}
	return strconv.ParseUint(fields[start], 10, 64)
}

// runs tells whether a process was started with exactly this command.
func runs(pid int, command []string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	return bytes.Equal(data, []byte(strings.Join(command, "\x00")+"\x00"))
}

// RunsProgram tells whether a process executes the file that is now at path, and not an older version of it.
func RunsProgram(pid int, path string) bool {
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	file, err := os.Stat(path)
	return err == nil && os.SameFile(running, file)
}

// findByMark looks for a process that a supervisor started but was killed before it could write down: it has the unit's mark in its
// environment and the unit's command line.
func findByMark(mark string, command []string) (int, bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, false
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !runs(pid, command) {
			continue
		}
		if hasEnv(pid, mark) {
			return pid, true
		}
	}
	return 0, false
}

func hasEnv(pid int, assignment string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, data...), []byte("\x00"+assignment+"\x00"))
}

// handle is a process that somebody can wait for and signal, whether or not it is a child.
type handle struct {
	fd    int // pidfd
	child *os.Process
}

// openProcess takes hold of a process that is not a child. It verifies the identity after taking hold, so that the number cannot
// have been given to another process in between.
func openProcess(p *Process) (*handle, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", p.PID, err)
	}
	if !p.Alive() {
		return nil, errors.Join(errZombie, unix.Close(fd))
	}
	return &handle{fd: fd}, nil
}

// wait returns how the process ended.
func (h *handle) wait() string {
	if h.child != nil {
		state, err := h.child.Wait()
		if err != nil {
			return err.Error()
		}
		return state.String()
	}
	for {
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Sprintf("cannot be watched: %v", err)
		default:
			return "ended (its exit code went to the process that started it)"
		}
	}
}

// Kill ends the process at once and waits until it has ended.
func (p *Process) Kill(ctx context.Context) error {
	h, err := openProcess(p)
	if errors.Is(err, errZombie) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.close()
	if err := h.signal(syscall.SIGKILL); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		h.wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *handle) signal(signal syscall.Signal) error {
	var err error
	if h.child != nil {
		err = h.child.Signal(signal)
	} else {
		err = unix.PidfdSendSignal(h.fd, signal, nil, 0)
	}
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (h *handle) close() {
	if h.child == nil {
		unix.Close(h.fd)
	}
}
