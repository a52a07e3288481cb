package launcher

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"patchbay/internal/launcher/protocol"
)

const (
	// passtReady is how long passt may take until its ports are open.
	passtReady = 60 * time.Second
	// passtAgain is how long after its end it is started again.
	passtAgain = time.Second
	// passtTries is how often passt is started before a start is given up: one in some does not find the pod's interface
	// (seen with the version of March 2023).
	passtTries = 3
	// everyPort is the number of descriptors with which every port can be forwarded: one for TCP, one per family for UDP.
	everyPort = 3 << 16
)

// carrier keeps a passt running for as long as QEMU does. QEMU waits for it at a socket, and again when it has gone: a guest outlives
// its passt and loses only the connections.
type carrier struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// carry starts passt and waits until it is ready. Every new passt has to learn the guest's MAC address before it can say anything to
// the guest: announce has QEMU send something with it.
func (l *Launcher) carry(p protocol.Passt, announce func()) (*carrier, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &carrier{cancel: cancel, done: make(chan struct{})}
	first := make(chan error, 1)
	go func() {
		defer close(c.done)
		// passt dies with the thread that starts it: this one, which ends with the function because it stays locked.
		runtime.LockOSThread()
		l.keepPasst(ctx, p, announce, first)
	}()
	if err := <-first; err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// close ends passt.
func (c *carrier) close() {
	c.cancel()
	<-c.done
}

// keepPasst runs passt again and again until ctx ends. It reports how the first start went.
func (l *Launcher) keepPasst(ctx context.Context, p protocol.Passt, announce func(), first chan<- error) {
	for tries := 1; ctx.Err() == nil; tries++ {
		began := time.Now()
		err := l.runPasst(ctx, p, func() {
			l.cfg.Log.Info("passt runs", "ready", time.Since(began))
			announce()
			if first != nil {
				first <- nil
				first = nil
			}
		})
		if first != nil && tries == passtTries {
			first <- err
			return
		}
		if ctx.Err() != nil {
			return
		}
		l.cfg.Log.Warn("passt is started again", "error", err)
		timer := time.NewTimer(passtAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// runPasst runs passt once, and calls ready when it is.
func (l *Launcher) runPasst(ctx context.Context, p protocol.Passt, ready func()) error {
	socket, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(l.cfg.RunDir, protocol.PasstName), Net: "unix"})
	if err != nil {
		return fmt.Errorf("connect passt to QEMU: %w", err)
	}
	defer socket.Close()
	wire, err := socket.File()
	if err != nil {
		return fmt.Errorf("connect passt to QEMU: %w", err)
	}
	socket.Close() // QEMU must see passt go
	run, err := l.startPasst(p, wire)
	wire.Close()
	if err != nil {
		return err
	}
	defer run.ready.Close()
	late := time.NewTimer(passtReady)
	defer late.Stop()
	for up := run.up(); ; {
		select {
		case is := <-up:
			up = nil
			if is {
				late.Stop()
				ready()
			}
		case <-late.C:
			_ = syscall.Kill(run.pid, syscall.SIGKILL)
		case <-ctx.Done():
			_ = syscall.Kill(run.pid, syscall.SIGKILL)
			<-run.status
			return ctx.Err()
		case status := <-run.status:
			<-run.words.done
			return fmt.Errorf("passt ended with code %d: %s", exitCode(status), run.words.last())
		}
	}
}

// passt is a running one.
type passt struct {
	pid    int
	status <-chan syscall.WaitStatus
	words  *lastWords
	ready  *os.File // it writes its number when all is open
}

// startPasst starts passt with one end of QEMU's connection.
func (l *Launcher) startPasst(p protocol.Passt, wire *os.File) (_ *passt, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	said, errorEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer errorEnd.Close()
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		said.Close()
		return nil, err
	}
	defer readyEnd.Close()
	run := &passt{words: listen(said), ready: ready}
	const wireFD, readyFD = 3, 4 // places in the list of files below
	args := []string{ConfinedCommand, l.cfg.Passt, "--foreground", "--quiet",
		"--fd", strconv.Itoa(wireFD), "--pid", fmt.Sprintf("/proc/self/fd/%d", readyFD),
		"--log-file", filepath.Join(l.cfg.RunDir, protocol.PasstLog), "--log-size", strconv.Itoa(protocol.PasstLogSize)}
	args = append(args, l.passtPorts(p)...)
	args = append(args, p.Args...)
	run.pid, run.status, err = l.children.start("/proc/self/exe", args, []*os.File{null, errorEnd, errorEnd, wire, readyEnd})
	if err != nil {
		ready.Close()
		return nil, err
	}
	return run, nil
}

// up tells when passt is ready; false: it never was.
func (r *passt) up() <-chan bool {
	up := make(chan bool, 1)
	go func() {
		_, err := bufio.NewReader(r.ready).ReadString('\n')
		up <- err == nil
	}()
	return up
}

// passtPorts are the arguments for what is forwarded to the guest.
func (l *Launcher) passtPorts(p protocol.Passt) []string {
	if len(p.TCP) > 0 || len(p.UDP) > 0 {
		return []string{"--tcp-ports", portList(p.TCP), "--udp-ports", portList(p.UDP)}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max >= everyPort {
		return []string{"--tcp-ports", allBut(p.Except), "--udp-ports", "all"}
	}
	tcp, udp := portsWithin(limit.Max)
	l.cfg.Log.Warn("the pod may not open files enough for all ports; list the ports that the guest needs in the interface's ports",
		"limit", limit.Max, "needed", everyPort, "tcp", fmt.Sprintf("1-%d", tcp), "udp", fmt.Sprintf("1-%d", udp))
	return []string{"--tcp-ports", strings.Join(append([]string{fmt.Sprintf("1-%d", tcp)}, except(p.Except)...), ","), "--udp-ports", fmt.Sprintf("1-%d", udp)}
}

// portsWithin are the last ports that are forwarded with so many descriptors at most: four fifths are for ports, where UDP takes two
// each, the rest for connections.
func portsWithin(descriptors uint64) (tcp, udp uint64) {
	return min(descriptors/2, 65535), min(descriptors*3/20, 65535)
}

func portList(ports []uint16) string {
	if len(ports) == 0 {
		return "none"
	}
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = strconv.Itoa(int(p))
	}
	return strings.Join(words, ",")
}

func allBut(ports []uint16) string {
	if len(ports) == 0 {
		return "all"
	}
	return strings.Join(except(ports), ",")
}

func except(ports []uint16) (words []string) {
	for _, p := range ports {
		words = append(words, fmt.Sprintf("~%d", p))
	}
	return words
}
