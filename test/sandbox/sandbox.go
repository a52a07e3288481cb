// Package sandbox gives a test process network, mount and process namespaces of its own. Everything that the tests make in them
// hangs on that process: when it ends, however it ends, nothing is left on the machine.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in the namespaces, and its children.
const inside = "PATCHBAY_TEST_INSIDE"

func init() {
	// Children are killed when the thread that started them ends; the main thread lives as long as the process.
	runtime.LockOSThread()
}

// Enter runs the process again in new namespaces, with the same arguments, and ends with that one's exit code; in that one it
// returns. Call it at the beginning of TestMain.
func Enter() error {
	if os.Getenv(inside) == "" {
		os.Exit(runInside())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	// Else /proc/self is that of the machine's process numbers.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The processes of a PID namespace, the OVN daemons among them, are killed when its first one ends.
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
