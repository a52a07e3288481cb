package delegate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// DHCP runs the daemon of the plugin dhcp, which holds the leases of pods. It is started when the first network needs it, and outlives
// the agent: a lease that nobody renews ends.
type DHCP struct {
	Program string // see Install
	Socket  string
	Log     *slog.Logger

	mu sync.Mutex
}

// Times of the daemon's start.
const (
	daemonDial  = time.Second
	daemonStart = 10 * time.Second
	daemonPoll  = 20 * time.Millisecond
)

// Prepare is for Config.Prepare: a plugin that gets its addresses by DHCP is told where the daemon is, and the daemon runs.
func (d *DHCP) Prepare(ctx context.Context, plugin map[string]any) error {
	ipam, ok := plugin["ipam"].(map[string]any)
	if !ok || ipam["type"] != "dhcp" {
		return nil
	}
	if path, ok := ipam["daemonSocketPath"].(string); ok && path != "" && path != d.Socket {
		return nil // somebody else's daemon
	}
	ipam["daemonSocketPath"] = d.Socket
	return d.ensure(ctx)
}

func (d *DHCP) ensure(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answers(ctx) {
		return nil
	}
	if err := os.Remove(d.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start the DHCP client of pods: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(d.Socket), 0o700); err != nil {
		return fmt.Errorf("start the DHCP client of pods: %w", err)
	}
	// Not CommandContext: it is to outlive the request and the agent, in a session of its own.
	cmd := exec.Command(d.Program, "dhcp", "daemon", "-socketpath", d.Socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the DHCP client of pods: %w", err)
	}
	d.Log.Info("started the DHCP client of pods", "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limited, cancel := context.WithTimeout(ctx, daemonStart)
	defer cancel()
	ticker := time.NewTicker(daemonPoll)
	defer ticker.Stop()
	for !d.answers(limited) {
		select {
		case <-ticker.C:
		case err := <-ended:
			return fmt.Errorf("the DHCP client of pods ended at once: %w", err)
		case <-limited.Done():
			return errors.New("the DHCP client of pods does not answer")
		}
	}
	return nil
}

func (d *DHCP) answers(ctx context.Context) bool {
	dialer := net.Dialer{Timeout: daemonDial}
	conn, err := dialer.DialContext(ctx, "unix", d.Socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
