package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/migration"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/migrate"
	"patchbay/internal/qemu"
	"patchbay/internal/qemu/qmp"
)

// placeLimit is how long this node may take to join the network of migrations.
const placeLimit = 30 * time.Second

// nbdSocket is where QEMU's NBD server listens, in the pod's run directory, while disks arrive.
const nbdSocket = "migration-nbd.sock"

// receiver receives one guest. Its goroutines end with it; QEMU does not.
type receiver struct {
	driver  *Driver
	log     *slog.Logger
	vmi     *virtv1.VirtualMachineInstance
	take    takeUp
	options migrate.Options
	counter migration.Counter
	changed func()

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	listen  *migration.Listener
	disks   sync.Once // the guest's disks are taken

	mu     sync.Mutex
	state  vmstate.Receiving
	domain *domain         // of the QEMU that waits; the machine owns it once it has collected it
	fresh  bool            // domain is not collected yet
	talk   *migration.Talk // with the source's agent; nil: it is not heard
	begun  bool            // a QEMU was started, or found: another migration needs another pod
}

// beginReceive opens the doors for the migration that the instance names. d is a QEMU that an earlier agent has started; nil: none.
func (m *machine) beginReceive(vmi *virtv1.VirtualMachineInstance, d *domain) {
	ms := vmi.Status.MigrationState
	r := &receiver{
		driver: m.driver, log: m.log.With("migration", ms.MigrationUID, "source", ms.SourceNode), vmi: vmi,
		take:    takeUp{driver: m.driver, log: m.log, vmi: vmi, pod: m.podUID, accel: m.accel},
		options: migrate.OptionsOf(ms), changed: m.nudge, domain: d, begun: d != nil,
		state: vmstate.Receiving{Migration: ms.MigrationUID},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	m.receiving = r
	if err := r.open(ms); err != nil {
		r.fail(err)
		return
	}
	if d != nil {
		r.running.Go(r.followLoad)
	}
	r.running.Go(r.serve)
}

// open opens the doors.
func (r *receiver) open(ms *virtv1.VirtualMachineInstanceMigrationState) error {
	ctx, cancel := context.WithTimeout(r.ctx, placeLimit)
	defer cancel()
	place, err := r.driver.MigrationPlace(ctx)
	if err != nil {
		return err
	}
	id := migration.Identity{Dir: r.driver.TLSDir, Plain: r.options.Plain}
	r.listen, err = migration.Listen(place.Inside, place.Address, id, ms.SourceNode, migration.Control, migration.Memory, migration.Block)
	if err != nil {
		return err
	}
	r.update(func(s *vmstate.Receiving) {
		s.Address, s.Network, s.Ports = place.Address, place.Kind, r.listen.Ports()
	})
	return nil
}

func (r *receiver) describe() *vmstate.Receiving {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.state
	return &state
}

func (r *receiver) update(change func(*vmstate.Receiving)) {
	r.mu.Lock()
	change(&r.state)
	r.mu.Unlock()
	r.changed()
}

func (r *receiver) fail(err error) {
	if r.ctx.Err() != nil {
		return
	}
	r.log.Warn("cannot receive the virtual machine", "error", err)
	r.update(func(s *vmstate.Receiving) { s.Failure = err.Error() })
}

// collect hands over a domain that the machine does not have yet; nil when there is none.
func (r *receiver) collect() *domain {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.fresh {
		return nil
	}
	r.fresh = false
	return r.domain
}

// close ends the receiver. QEMU stays as it is.
func (r *receiver) close() {
	r.cancel()
	if r.listen != nil {
		r.listen.Close()
	}
	r.running.Wait()
	if d := r.collect(); d != nil {
		d.run(func() {}) // close waits for what run starts
		d.close()
	}
}

// serve talks with the source's agent, one connection at a time.
func (r *receiver) serve() {
	for {
		conn, err := r.listen.Accept(r.ctx, migration.Control)
		if err != nil {
			return
		}
		talk := migration.NewTalk(conn)
		r.hear(talk)
		err = r.converse(talk)
		if err != nil && r.ctx.Err() == nil {
			_ = talk.Say(migration.Word{Failed: err.Error()})
		}
		talk.Close()
		r.hear(nil)
	}
}

func (r *receiver) hear(talk *migration.Talk) {
	r.mu.Lock()
	r.talk = talk
	r.mu.Unlock()
	r.update(func(s *vmstate.Receiving) { s.Connected = talk != nil })
}

// converse answers until the connection ends. An error is what the source is told.
func (r *receiver) converse(talk *migration.Talk) error {
	for {
		word, err := talk.Hear(r.ctx)
		if err != nil {
			var said *migration.Refusal
			if errors.As(err, &said) {
				r.fail(fmt.Errorf("the source node: %w", said))
			}
			return nil // nobody to tell
		}
		switch {
		case word.Hello != nil:
			prepared, failure := r.prepare(word.Hello)
			if failure != nil {
				r.fail(failure)
				return failure
			}
			err = talk.Say(migration.Word{Prepared: prepared})
		case word.Copied != nil:
			r.takeDisks()
			continue
		case word.Go != nil:
			if err := r.run(word.Go.Migration, word.Go.Running); err != nil {
				return err
			}
			err = talk.Say(migration.Word{Taken: &migration.Taken{}})
		default:
			return errors.New("the source node's agent said something unexpected; are both agents of one version?")
		}
		if err != nil {
			return nil // the source comes again if it has given the guest away
		}
	}
}

// prepare starts a QEMU that waits for the guest, and has it listen.
func (r *receiver) prepare(hello *migration.Hello) (*migration.Prepared, error) {
	r.mu.Lock()
	begun := r.begun
	r.begun = true
	r.mu.Unlock()
	switch {
	case hello.Migration != string(r.state.Migration):
		return nil, fmt.Errorf("migration %s was announced, %s has come", r.state.Migration, hello.Migration)
	case begun:
		return nil, errors.New("this migration had begun before an agent was started again")
	}
	ctx, cancel := context.WithTimeout(r.ctx, prepareLimit)
	defer cancel()
	d, err := r.take.receive(ctx, hello)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.domain, r.fresh = d, true
	r.mu.Unlock()
	r.changed()
	err = d.monitor.SetMigrationCapabilities(ctx, map[string]bool{"events": true, "return-path": true, "late-block-activate": true})
	if err != nil {
		return nil, err
	}
	bases := d.digest(ctx, r.log, qemu.LocalDisks(r.vmi))
	prepared := &migration.Prepared{PostCopy: hello.PostCopy && r.canPostCopy(ctx)}
	r.running.Go(r.followLoad)
	if err := r.receiveDisks(ctx, hello.Disks); err != nil {
		return nil, err
	}
	if err := r.receiveMemory(ctx); err != nil {
		return nil, err
	}
	prepared.SameBases = sameBases(hello.Bases, <-bases)
	return prepared, nil
}

// canPostCopy asks QEMU for post-copy. The node's kernel has to let it fetch memory that a guest misses, see openUserFault.
func (r *receiver) canPostCopy(ctx context.Context) bool {
	err := r.domain.monitor.SetMigrationCapabilities(ctx, map[string]bool{"postcopy-ram": true})
	if err != nil {
		r.log.Info("post-copy is allowed, but this node cannot do it", "error", err)
	}
	return err == nil
}

// receiveMemory gives QEMU a socket for the migration stream.
func (r *receiver) receiveMemory(ctx context.Context) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if err := r.domain.monitor.GiveFile(ctx, memoryStream, theirs); err != nil {
		ours.Close()
		return err
	}
	if err := r.domain.monitor.MigrateIncoming(ctx, "fd:"+memoryStream); err != nil {
		ours.Close()
		return err
	}
	r.running.Go(func() {
		remote, err := r.listen.Accept(r.ctx, migration.Memory)
		if err != nil {
			ours.Close()
			return
		}
		_ = migration.Splice(r.ctx, ours, remote, &r.counter)
	})
	return nil
}

// receiveDisks offers the disks for writing, to the source only.
func (r *receiver) receiveDisks(ctx context.Context, disks []string) error {
	if len(disks) == 0 {
		return nil
	}
	path := r.domain.dir.Path(nbdSocket)
	_ = os.Remove(path) // of an attempt that was killed
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for disks: %w", err)
	}
	file, err := listener.File()
	if err != nil {
		listener.Close()
		return fmt.Errorf("listen for disks: %w", err)
	}
	defer file.Close()
	m := r.domain.monitor
	err = m.GiveFile(ctx, nbdSocket, file)
	if err == nil {
		err = m.ServeNBD(ctx, nbdSocket)
	}
	for _, node := range disks {
		if err == nil {
			err = m.ExportNBD(ctx, node)
		}
	}
	if err != nil {
		listener.Close()
		return err
	}
	r.running.Go(func() {
		defer listener.Close() // QEMU has its own copy; the path goes
		r.joinDisks(len(disks))
	})
	return nil
}

// joinDisks joins as many connections as there are disks to QEMU's server.
func (r *receiver) joinDisks(count int) {
	for range count {
		remote, err := r.listen.Accept(r.ctx, migration.Block)
		if err != nil {
			return
		}
		local, err := r.domain.dir.Dial(r.ctx, nbdSocket)
		if err != nil {
			remote.Close()
			return
		}
		r.running.Go(func() { _ = migration.Splice(r.ctx, local, remote, &r.counter) })
	}
}

// followLoad notes when QEMU has everything.
func (r *receiver) followLoad() {
	events := r.domain.monitor.Subscribe()
	defer events.Close()
	defer r.noteEnd()
	for r.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(r.ctx, actLimit)
		p, err := r.domain.monitor.Migration(ctx)
		cancel()
		if err == nil && p.Status == qmp.MigrationCompleted {
			r.update(func(s *vmstate.Receiving) { s.Loaded = true })
			return
		}
		if _, err := events.Until(r.ctx, func(e qmp.Event) bool { return e.Name == qmp.EventMigration }); err != nil {
			return
		}
	}
}

// noteEnd tells the source that QEMU has ended before the guest was here.
func (r *receiver) noteEnd() {
	r.mu.Lock()
	loaded, talk := r.state.Loaded, r.talk
	r.mu.Unlock()
	if loaded || r.ctx.Err() != nil {
		return
	}
	err := errors.New("QEMU on the target node ended")
	r.fail(err)
	if talk != nil {
		_ = talk.Say(migration.Word{Failed: err.Error()})
	}
}

// run lets the guest run here: its source has given it away, or is dead.
func (r *receiver) run(uid string, running bool) error {
	r.mu.Lock()
	d, taken := r.domain, r.state.Taken
	r.mu.Unlock()
	switch {
	case uid != string(r.state.Migration) || d == nil:
		return errors.New("this node has no such guest")
	case taken:
		return nil
	}
	r.takeDisks()
	ctx, cancel := context.WithTimeout(r.ctx, actLimit)
	defer cancel()
	if err := d.awaitArrival(ctx); err != nil {
		return err
	}
	if running {
		if err := d.monitor.Resume(ctx); err != nil {
			return fmt.Errorf("let the guest run on the target node: %w", err)
		}
	}
	r.arrived(ctx)
	at := now()
	r.update(func(s *vmstate.Receiving) { s.Taken, s.TakenAt, s.Failure = true, at, "" })
	r.log.Info("the guest runs here", "bytes", r.counter.Received())
	_ = d.monitor.Announce(ctx)                    // QEMU has done so once, before the guest ran
	d.running.Go(func() { d.refreshPasst(d.ctx) }) // longer than the migration lasts
	return nil
}

// awaitArrival waits until QEMU can let the guest run. With post-copy its source has given it away a moment earlier: until then nobody
// could tell from QEMU's state that memory is still to follow.
func (d *domain) awaitArrival(ctx context.Context) error {
	events := d.monitor.Subscribe()
	defer events.Close()
	for {
		p, err := d.monitor.Migration(ctx)
		if err != nil {
			return err
		}
		if p.Status != qmp.MigrationActive {
			d.update(func(s *vmstate.Domain) { s.Memory = p.Status })
			return nil
		}
		if _, err := events.Until(ctx, func(e qmp.Event) bool { return e.Name == qmp.EventMigration }); err != nil {
			return fmt.Errorf("wait until QEMU has what the guest needs to run: %w", err)
		}
	}
}

// arrived tells the guest's networks.
func (r *receiver) arrived(ctx context.Context) {
	for _, c := range r.domain.list() {
		if c.Wired.Arrived == nil {
			continue
		}
		if err := c.Wired.Arrived(ctx); err != nil {
			r.log.Warn("connections of the guest may stand still for half a minute", "interface", c.Interface.Name, "error", err)
		}
	}
}

// takeDisks ends the NBD server. QEMU would not let the guest write to a disk that somebody else may write to.
func (r *receiver) takeDisks() {
	r.disks.Do(func() {
		ctx, cancel := context.WithTimeout(r.ctx, actLimit)
		defer cancel()
		_ = r.domain.monitor.StopNBD(ctx) // there may be none
	})
}

// receive is start for a guest that arrives. It gets the network cards that it has; what is to be plugged follows when it runs here.
func (t takeUp) receive(ctx context.Context, hello *migration.Hello) (*domain, error) {
	vmi := t.vmi.DeepCopy()
	has, flat := map[string]bool{}, hello.Ports == 0 // without ports nothing is plugged or unplugged
	for n, i := range vmi.Spec.Domain.Devices.Interfaces {
		_, plugged := hello.NICs[i.Name]
		switch {
		case i.State != virtv1.InterfaceStateAbsent && (plugged || flat):
			has[i.Name] = true
		case !flat && !plugged:
			vmi.Spec.Domain.Devices.Interfaces[n].State = virtv1.InterfaceStateAbsent
		}
	}
	for name := range hello.NICs {
		if !has[name] {
			return nil, fmt.Errorf("the guest still has the network card of interface %q, which it is to lose; try again when it is unplugged", name)
		}
	}
	t.vmi, t.arrives = vmi, hello
	return t.run(ctx, t.launch)
}
