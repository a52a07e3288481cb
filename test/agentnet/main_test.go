// Package agentnet tests the node agent's network on a real Open vSwitch and OVN: one node in a network namespace of its own,
// pods in further ones, and an outside host. No cluster runs; logical ports are made with ovn-nbctl.
//
// The test process runs itself again in a new namespace, which is the node's. Everything it makes hangs on that process:
// when it ends, however it ends, nothing is left on the machine.
package agentnet

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideVariable marks the process that runs in the node's namespace; victimVariable one that carries out one ADD and dies.
const (
	insideVariable = "PATCHBAY_AGENTNET_INSIDE"
	victimVariable = "PATCHBAY_AGENTNET_VICTIM"
)

func init() {
	// Children are killed when the thread that started them ends; the main thread lives as long as the process.
	runtime.LockOSThread()
}

func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case os.Getenv(victimVariable) != "":
		os.Exit(runVictim())
	case os.Getenv(insideVariable) == "":
		os.Exit(runInside())
	}
	os.Exit(runTests(m))
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A PID namespace: its processes, the OVN daemons among them, are killed when its first one ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			return exit.ExitCode()
		}
		fmt.Fprintf(os.Stderr, "these tests make network namespaces; run them as root: %v\n", err)
		return 1
	}
	return 0
}

// runTests is the first process of the PID namespace.
func runTests(m *testing.M) int {
	if err := mountProc(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("/tmp", "pbag-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if lab, err = startLab(dir); err != nil {
		fmt.Fprintln(os.Stderr, "start Open vSwitch and OVN:", err)
		return 1
	}
	return m.Run()
}

// mountProc makes /proc/self right in the new PID namespace.
func mountProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}
