package vmdriver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/credentials"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/client"
	"patchbay/internal/qemu/qga"
	"patchbay/internal/qemu/qmp"
)

// domain is a QEMU that this process is attached to.
type domain struct {
	monitor qmp.Machine
	dir     *client.RunDir
	pod     types.UID // that QEMU is in
	agent   *qga.Client
	log     *slog.Logger

	credentials []virtv1.AccessCredential
	secrets     credentials.Dir

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	changed func()
	poke    chan struct{} // holds a token when the guest's addresses may have changed

	screenshots sync.Mutex // one at a time: they have one file

	mu       sync.Mutex
	cards    cards // replaced as a whole, never changed in place
	state    vmstate.Domain
	shutdown qmp.ShutdownReason
	paused   bool // by its user, as far as is known: QEMU's own pauses do not count
}

// run starts what accompanies the guest; changed is called after every change of what describe returns.
func (d *domain) run(changed func()) {
	d.changed = changed
	for n := range d.cards {
		d.serve(&d.cards[n])
	}
	d.running.Go(d.followEvents)
	changed()
}

// close ends what run has started. The guest runs on.
func (d *domain) close() {
	d.cancel()
	d.monitor.Close()
	d.agent.Close()
	d.running.Wait()
	d.list().discard()
	d.dir.Close()
}

func (d *domain) lost() bool {
	select {
	case <-d.monitor.Done():
		return true
	default:
		return false
	}
}

func (d *domain) shutdownReason() qmp.ShutdownReason {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shutdown
}

// describe is a copy that the caller may keep.
func (d *domain) describe() *vmstate.Domain {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := d.state
	return &state
}

// update changes the state and says so.
func (d *domain) update(change func(*vmstate.Domain)) {
	d.mu.Lock()
	change(&d.state)
	d.mu.Unlock()
	d.changed()
}

func (d *domain) pressPowerButton(ctx context.Context) error {
	d.update(func(s *vmstate.Domain) { s.PowerButton = now() })
	return d.monitor.Powerdown(ctx)
}

func (d *domain) markKilled() {
	d.update(func(s *vmstate.Domain) { s.Killed = now() })
}

// followEvents keeps the state true until the monitor ends.
func (d *domain) followEvents() {
	defer d.changed()
	events := d.monitor.Subscribe()
	defer events.Close()
	agent := newGuestWatch(d)
	defer agent.stop()
	d.lookAround(agent)
	for {
		event, err := events.Next(d.ctx)
		if err != nil {
			return
		}
		d.follow(event, agent)
	}
}

// lookAround catches up with what happened before the first event.
func (d *domain) lookAround(agent *guestWatch) {
	ctx, cancel := context.WithTimeout(d.ctx, actLimit)
	defer cancel()
	d.refreshMemory(ctx) // first: who runs a guest must know whether all of it is here
	d.refreshRunState(ctx)
	d.lookForAgent(ctx, agent)
	d.listenToFilters(ctx)
	d.restoreLinks(ctx)
}

func (d *domain) lookForAgent(ctx context.Context, agent *guestWatch) {
	if open, err := d.monitor.AgentOpen(ctx, agentChardev); err == nil && open {
		agent.start()
	}
}

func (d *domain) follow(event qmp.Event, agent *guestWatch) {
	ctx, cancel := context.WithTimeout(d.ctx, actLimit)
	defer cancel()
	switch event.Name {
	case qmp.EventShutdown:
		var data qmp.ShutdownData
		if event.Decode(&data) == nil {
			d.noteShutdown(data.Reason)
		}
	case qmp.EventStop, qmp.EventReset, qmp.EventGuestPanicked:
		d.refreshRunState(ctx)
	case qmp.EventResume:
		d.refreshRunState(ctx)
		d.lookForAgent(ctx, agent) // a guest that has arrived brings its agent
	case qmp.EventMigration:
		d.refreshMemory(ctx)
	case qmp.EventPortChanged:
		var data qmp.PortData
		if event.Decode(&data) == nil && data.ID == agentPort {
			if data.Open {
				agent.start()
			} else {
				agent.stop()
			}
		}
	case qmp.EventDeviceDeleted:
		var data qmp.DeviceData
		if event.Decode(&data) == nil && strings.HasPrefix(data.Device, nicDevice("")) {
			d.update(func(s *vmstate.Domain) { s.Released++ })
		}
	case qmp.EventRxFilter:
		d.listenToFilters(ctx)
		d.askSoon()
	}
}

// askSoon has the guest agent asked: the guest's addresses may have changed.
func (d *domain) askSoon() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// noteShutdown remembers why QEMU is about to end. A guest that shuts down in order to be reset does not end it.
func (d *domain) noteShutdown(reason qmp.ShutdownReason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state.Rebooting.IsZero() {
		d.shutdown = reason
	}
}

func (d *domain) refreshRunState(ctx context.Context) {
	status, err := d.monitor.Status(ctx)
	if err != nil {
		return // the monitor is ending, which is noticed
	}
	d.noteRun(status.State)
	d.update(func(s *vmstate.Domain) { s.RunState = status.State })
}

// refreshMemory notes how far a migration is.
func (d *domain) refreshMemory(ctx context.Context) {
	if p, err := d.monitor.Migration(ctx); err == nil {
		d.update(func(s *vmstate.Domain) { s.Memory = p.Status })
	}
}

// noteRun remembers whether the guest would run if QEMU let it.
func (d *domain) noteRun(state string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch state {
	case "running":
		d.paused = false
	case "paused", "prelaunch":
		d.paused = true
	}
}

// guestRan says whether the guest is to run on the other side.
func (d *domain) guestRan() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.paused
}

// listenToFilters asks for the receive filter of every NIC: QEMU reports the next change only then. A guest changes it when it
// gets an address, which is when its agent has news.
func (d *domain) listenToFilters(ctx context.Context) {
	for _, c := range d.list() {
		_, _ = d.monitor.RxFilter(ctx, nicDevice(c.Interface.Name)) // not every model has one
	}
}

// setLinks gives every NIC the link state that its interface asks for.
func (d *domain) setLinks(ctx context.Context, vmi *virtv1.VirtualMachineInstance) error {
	for _, nic := range d.describe().NICs {
		down := vmstate.WantsLinkDown(vmi, nic.Name)
		if down == nic.LinkDown {
			continue
		}
		if err := d.monitor.SetLink(ctx, nicDevice(nic.Name), !down); err != nil {
			return err
		}
		d.update(func(s *vmstate.Domain) {
			s.NICs = slices.Clone(s.NICs) // describe has handed out the old slice
			for n := range s.NICs {
				if s.NICs[n].Name == nic.Name {
					s.NICs[n].LinkDown = down
				}
			}
		})
	}
	return nil
}

// restoreLinks makes true what the state says of links: an earlier agent may have missed a change.
func (d *domain) restoreLinks(ctx context.Context) {
	for _, nic := range d.describe().NICs {
		if err := d.monitor.SetLink(ctx, nicDevice(nic.Name), !nic.LinkDown); err != nil {
			d.log.Warn("cannot set the link of a network card", "interface", nic.Name, "error", err)
		}
	}
}

// softReboot has the guest shut down and then resets it, or asks its agent to reboot.
func (d *domain) softReboot(ctx context.Context) error {
	if d.describe().Guest != nil {
		if err := d.agent.Shutdown(ctx, qga.Reboot); err == nil {
			return nil
		}
	}
	if err := d.onShutdown(ctx, "pause"); err != nil {
		return err
	}
	d.update(func(s *vmstate.Domain) { s.Rebooting = now() })
	return d.monitor.Powerdown(ctx)
}

// finishReboot resets a guest that has shut down for a soft reboot.
func (d *domain) finishReboot(ctx context.Context) error {
	if err := d.monitor.Reset(ctx); err != nil {
		return err
	}
	if err := d.giveUpReboot(ctx); err != nil {
		return err
	}
	return d.monitor.Resume(ctx)
}

// giveUpReboot lets the guest's next shutdown be one.
func (d *domain) giveUpReboot(ctx context.Context) error {
	if err := d.onShutdown(ctx, "poweroff"); err != nil {
		return err
	}
	d.update(func(s *vmstate.Domain) { s.Rebooting = time.Time{} })
	return nil
}

// onShutdown sets what QEMU does when the guest shuts down: poweroff or pause.
func (d *domain) onShutdown(ctx context.Context, action string) error {
	return d.monitor.Execute(ctx, qmp.Command{Name: "set-action", Args: map[string]any{"shutdown": action}}, nil)
}
