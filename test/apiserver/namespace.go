package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name: it ends with the last process and socket in it.
type namespace struct {
	file  *os.File
	jobs  chan func()
	ended chan struct{}
}

// newNamespace makes a namespace whose loopback device carries Address, and a thread that starts processes in it. Children get
// a parent-death signal, which the kernel ties to that thread, so it lives until close.
func newNamespace() (*namespace, error) {
	n := &namespace{jobs: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine and takes the namespace with it
		err := n.enterNew()
		made <- err
		if err != nil {
			return
		}
		for job := range n.jobs {
			job()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace (the tests must run as root): %w", err)
	}
	return n, nil
}

func (n *namespace) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return err
	}
	n.file = file
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(Address + "/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(lo, address), netlink.LinkSetUp(lo))
}

// do runs f on a thread inside the namespace.
func (n *namespace) do(f func()) error {
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that no other goroutine runs in the namespace
		err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		entered <- err
	}()
	return <-entered
}

// start starts a command in the namespace; it is killed when this process dies.
func (n *namespace) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	n.jobs <- func() { result <- cmd.Start() }
	return <-result
}

func (n *namespace) output(cmd *exec.Cmd, stdin io.Reader) (stdout, stderr string, err error) {
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &problems
	if err := n.start(cmd); err != nil {
		return "", "", err
	}
	err = cmd.Wait()
	return out.String(), strings.TrimSpace(problems.String()), err
}

func (n *namespace) close() {
	close(n.jobs)
	<-n.ended
	n.file.Close()
}
