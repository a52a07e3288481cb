package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Config is what a Plugin needs.
type Config struct {
	Device Device
	// Dir is the kubelet's directory for device plugins. Its path and a name of twelve bytes must fit a socket's address.
	Dir string
	Log *slog.Logger
}

// Plugin announces one device to the node's kubelet and keeps it announced.
type Plugin struct {
	Config
	offer  *offer        // nil: nothing is announced
	health *health       // of the device
	wait   time.Duration // before the next attempt
	said   string        // what was logged last about the device
}

// New makes a plugin.
func New(c Config) *Plugin {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Plugin{Config: c, health: newHealth(), wait: firstRetry}
}

// A kubelet that is starting refuses connections for a moment.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// kubeletSocket is where a kubelet listens for device plugins, in their directory.
const kubeletSocket = "kubelet.sock"

// Start announces the device as soon as it works, and again to every kubelet that starts, until ctx ends. Pods that have the
// device keep it. No failure is worth the end of the agent, so there is never an error.
func (p *Plugin) Start(ctx context.Context) error {
	p.removeLeftovers()
	for ctx.Err() == nil {
		if err := p.run(ctx); err != nil {
			p.Log.Warn("device cannot be announced; trying again", "resource", p.Device.Resource, "error", err)
			p.await(ctx, &fsnotify.Watcher{}, lastRetry)
		}
	}
	return nil
}

// run announces the device until ctx ends or what tells of changes does.
func (p *Plugin) run(ctx context.Context) error {
	watcher, err := p.watch()
	if err != nil {
		return err
	}
	defer watcher.Close()
	defer p.withdraw()
	for ctx.Err() == nil {
		retry := p.turn(ctx)
		if err := p.await(ctx, watcher, retry); err != nil {
			return err
		}
	}
	return nil
}

// watch reports what happens in the kubelet's directory and in the device's.
func (p *Plugin) watch() (*fsnotify.Watcher, error) {
	if err := os.MkdirAll(p.Dir, 0o750); err != nil { // as the kubelet makes it
		return nil, err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{p.Dir, filepath.Dir(p.Device.Path)} {
		if err := watcher.Add(dir); err != nil {
			watcher.Close()
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return watcher, nil
}

// turn brings what is announced in line with what works, and returns when to try again; 0: when something happens.
func (p *Plugin) turn(ctx context.Context) (retry time.Duration) {
	problem := p.Device.Check()
	p.health.set(problem == nil)
	// A device that has never worked is not even known to the kubelet.
	if problem == nil && p.offer == nil {
		if problem = p.announce(ctx); problem != nil {
			retry, p.wait = p.wait, min(2*p.wait, lastRetry)
		} else {
			p.wait = firstRetry
		}
	}
	p.say(problem)
	return retry
}

// say logs whether pods can have the device, when that has changed.
func (p *Plugin) say(problem error) {
	text := "pods may request it"
	if problem != nil {
		text = problem.Error()
	}
	if text == p.said {
		return
	}
	p.said = text
	p.Log.Info("device", "resource", p.Device.Resource, "path", p.Device.Path, "state", text)
}

// await returns when there may be something to do.
func (p *Plugin) await(ctx context.Context, watcher *fsnotify.Watcher, retry time.Duration) error {
	var alarm <-chan time.Time
	if retry != 0 {
		timer := time.NewTimer(retry)
		defer timer.Stop()
		alarm = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-alarm:
			return nil
		case event, ok := <-watcher.Events:
			if !ok {
				return errors.New("the watch of directories has ended")
			}
			if p.concerns(event) {
				return nil
			}
		case err := <-watcher.Errors:
			return fmt.Errorf("events of directories were lost, and a kubelet's start may be among them: %w", err)
		}
	}
}

// concerns says whether an event is about the device or about a kubelet that has started; one that has does not know us any more.
func (p *Plugin) concerns(event fsnotify.Event) bool {
	switch {
	case event.Name == p.Device.Path:
		return event.Has(fsnotify.Create) || event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)
	case event.Name == filepath.Join(p.Dir, kubeletSocket) && event.Has(fsnotify.Create):
		p.withdraw()
		return true
	}
	return false
}

func (p *Plugin) announce(ctx context.Context) (err error) {
	if p.offer, err = newOffer(ctx, p.Device, p.Dir, p.socketPrefix(), p.health); err != nil {
		return fmt.Errorf("the kubelet does not take it yet: %w", err)
	}
	return nil
}

func (p *Plugin) withdraw() {
	if p.offer != nil {
		p.offer.close()
		p.offer = nil
	}
}

// socketPrefix begins the names of this plugin's sockets.
func (p *Plugin) socketPrefix() string { return path.Base(p.Device.Resource) + "-" }

// removeLeftovers removes the sockets of agents that did not come to do so. Only one agent runs on a node.
func (p *Plugin) removeLeftovers() {
	sockets, _ := filepath.Glob(filepath.Join(p.Dir, p.socketPrefix()+"*"))
	for _, socket := range sockets {
		_ = os.Remove(socket)
	}
}
