// Package datapath tests what the rows of internal/topology do to packets: two nodes with Open vSwitch and OVN, joined by a
// fabric, pods in namespaces of their own, rows written by the real Store. No cluster runs.
//
// The test process runs itself again in new network, PID and mount namespaces. Everything it makes hangs on that process:
// when it ends, however it ends, nothing is left on the machine.
package datapath

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideVariable marks the process inside the namespaces.
const insideVariable = "PATCHBAY_DATAPATH_INSIDE"

func init() {
	// Children are killed when the thread that started them ends; the main thread lives as long as the process.
	runtime.LockOSThread()
}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(insideVariable) == "" {
		os.Exit(runInside())
	}
	if err := isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := startLab(); err != nil {
		fmt.Fprintln(os.Stderr, "start Open vSwitch and OVN:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "these tests make network namespaces; run them as root: %v\n", err)
		return 1
	}
	return 0
}

// labDir and namespaces are directories that exist on every Debian and that only this process sees as its own.
const (
	labDir     = "/mnt"
	namespaces = "/run/netns"
)

func isolate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := unix.Mount("tmpfs", labDir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", labDir, err)
	}
	return nil
}
