package launcher

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// children starts processes and collects every process that ends, as the first process of a pod must: those it started and orphans.
// os/exec cannot share the process with that: whoever waits first gets the status.
type children struct {
	mu    sync.Mutex
	ended map[int]chan<- syscall.WaitStatus
}

func newChildren() *children {
	return &children{ended: map[int]chan<- syscall.WaitStatus{}}
}

// start runs a program with the files as its descriptors 0, 1, 2 and so on, and with more environment than every program has. The program
// is killed when this thread ends.
func (c *children) start(path string, args []string, files []*os.File, environment ...string) (pid int, ended <-chan syscall.WaitStatus, err error) {
	attributes := &syscall.ProcAttr{Env: append([]string{"LANG=C"}, environment...), Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	for _, file := range files {
		raw, err := file.SyscallConn()
		if err != nil {
			return 0, nil, err
		}
		// File.Fd would make the open file blocking, which is shared with whoever sent it.
		if err := raw.Control(func(fd uintptr) { attributes.Files = append(attributes.Files, fd) }); err != nil {
			return 0, nil, err
		}
	}
	status := make(chan syscall.WaitStatus, 1)
	c.mu.Lock() // a child that ends at once must not be collected before it is known
	defer c.mu.Unlock()
	pid, err = syscall.ForkExec(path, append([]string{path}, args...), attributes)
	if err != nil {
		return 0, nil, fmt.Errorf("run %s: %w", path, err)
	}
	c.ended[pid] = status
	return pid, status, nil
}

// reap collects processes until ctx ends.
func (c *children) reap(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	defer signal.Stop(signals)
	for {
		c.collect()
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
	}
}

func (c *children) collect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ended, ours := c.ended[pid]; ours {
			delete(c.ended, pid)
			ended <- status
		}
	}
}
