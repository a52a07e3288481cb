package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/migration"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/migrate"
	"patchbay/internal/qemu"
	"patchbay/internal/qemu/qmp"
)

// Times of a sender.
const (
	// reachLimit is how long the target's agent may be out of reach before the migration begins.
	reachLimit = 30 * time.Second
	// prepareLimit is how long the target's QEMU may take to start.
	prepareLimit = 90 * time.Second
	// monitorInterval is how often the progress is looked at.
	monitorInterval = 400 * time.Millisecond
	// sayAgain is how soon the target is told again that the guest is its own.
	sayAgain = time.Second
	// cleanLimit bounds taking back what a migration has changed in QEMU.
	cleanLimit = 20 * time.Second
)

// errAborted is a migration that somebody gave up.
var errAborted = errors.New("the migration was cancelled")

// sender sends one guest. Its goroutine ends when the guest is the target's, or surely is not.
type sender struct {
	driver  *Driver
	log     *slog.Logger
	vmi     *virtv1.VirtualMachineInstance
	domain  *domain // nil: the guest was given away by an earlier agent
	target  migration.Target
	id      migration.Identity
	where   migration.Inside
	options migrate.Options
	counter migration.Counter
	changed func()

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	// flow ends with the streams of QEMU, which may not outlive the talk with the target.
	flow    context.Context
	cut     context.CancelFunc
	streams sync.WaitGroup
	talk    *migration.Talk // while the guest is being sent
	heard   chan heard      // holds at most one

	mu      sync.Mutex
	state   vmstate.Sending
	aborted bool
}

// beginSend starts a sender for the migration that the instance names.
func (m *machine) beginSend(vmi *virtv1.VirtualMachineInstance, d *domain) {
	ms := vmi.Status.MigrationState
	s := &sender{
		driver: m.driver, log: m.log.With("migration", ms.MigrationUID, "target", ms.TargetNode), vmi: vmi, domain: d,
		target:  migration.Target{Node: ms.TargetNode, Address: ms.TargetNodeAddress, Ports: ms.TargetDirectMigrationNodePorts},
		options: migrate.OptionsOf(ms), changed: m.nudge, done: make(chan struct{}), heard: make(chan heard, 1),
		state: vmstate.Sending{Migration: ms.MigrationUID, Mode: virtv1.MigrationPreCopy},
	}
	s.id = migration.Identity{Dir: m.driver.TLSDir, Plain: s.options.Plain}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.flow, s.cut = context.WithCancel(s.ctx)
	m.sending = s
	m.driver.running.Go(s.run)
}

func (s *sender) describe() *vmstate.Sending {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.state
	return &state
}

func (s *sender) update(change func(*vmstate.Sending)) {
	s.mu.Lock()
	change(&s.state)
	s.mu.Unlock()
	s.changed()
}

// abort gives the migration up, if it is not too late.
func (s *sender) abort() {
	s.mu.Lock()
	s.aborted = true
	s.mu.Unlock()
}

func (s *sender) isAborted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aborted
}

// close ends the sender. A migration under way fails, and the guest runs on here.
func (s *sender) close() {
	s.cancel()
	<-s.done
}

func (s *sender) migrationUID() types.UID { return s.state.Migration } // never changes

func (s *sender) run() {
	defer close(s.done)
	var err error
	taken := false
	if s.driver.gift(s.vmi.UID).Migration != s.migrationUID() {
		taken, err = s.send()
	}
	if err == nil && !taken {
		err = s.giveAway()
	}
	s.cancel()
	s.streams.Wait()
	s.update(func(state *vmstate.Sending) {
		state.Over = true
		if err != nil {
			state.Failure, state.Aborted = err.Error(), errors.Is(err, errAborted)
		}
	})
	s.log.Info("migration ended on its source", "error", err, "bytes", s.counter.Sent())
}

// send brings the guest to the target, stopped on both sides. Whatever happens, it does not run there without giveAway.
func (s *sender) send() (taken bool, err error) {
	place, err := s.driver.MigrationPlace(s.ctx)
	if err != nil {
		return false, err
	}
	s.where = place.Inside
	local := qemu.LocalDisks(s.vmi)
	var disks []string
	for _, disk := range local {
		disks = append(disks, disk.Node)
	}
	s.takeBack(disks) // of an agent that was killed: the guest may stand still
	defer s.takeBack(disks)
	bases := s.domain.digest(s.ctx, s.log, local)
	conn, err := s.reach()
	if err != nil {
		return false, err
	}
	talk := migration.NewTalk(conn)
	defer talk.Close()
	s.talk = talk
	defer func() {
		if err != nil {
			err = s.reasonOf(err)
			_ = talk.Say(migration.Word{Failed: err.Error()})
		}
	}()
	hello, err := s.hello(disks)
	if err != nil {
		return false, err
	}
	hello.Bases = <-bases
	if err := talk.Say(migration.Word{Hello: hello}); err != nil {
		return false, err
	}
	prepared, err := s.hearPrepared(talk)
	if err != nil {
		return false, err
	}
	s.options.PostCopy = s.options.PostCopy && prepared.PostCopy
	s.streams.Go(func() { s.listen(talk) })
	if err := s.copyDisks(disks, prepared.SameBases); err != nil {
		return false, err
	}
	if err := s.copyMemory(disks); err != nil {
		return false, err
	}
	return s.record(talk)
}

// listen waits for what the target says next: that the guest is its own, or why not. Without a target the streams lead nowhere, and need
// not be waited for; only a guest that runs there already keeps them, for its memory.
func (s *sender) listen(talk *migration.Talk) {
	word, err := talk.Hear(s.ctx)
	s.heard <- heard{word, err}
	if err != nil && s.describe().Mode != virtv1.MigrationPostCopy {
		s.cut()
	}
}

// verdict is an end that this side has decided. What the target says of it is a consequence.
type verdict string

func (v verdict) Error() string { return string(v) }

// heard is what the target said.
type heard struct {
	word migration.Word
	err  error
}

// reasonOf prefers what the target has said to what followed from it.
func (s *sender) reasonOf(err error) error {
	var own verdict
	if errors.Is(err, errAborted) || errors.As(err, &own) || s.ctx.Err() != nil {
		return err
	}
	select {
	case last := <-s.heard:
		var refusal *migration.Refusal
		if errors.As(last.err, &refusal) {
			return fmt.Errorf("the target node: %w", refusal)
		}
		if last.err != nil {
			return last.err
		}
	case <-time.After(reasonLimit):
	}
	return err
}

// reasonLimit is how much later than its effect a reason may be heard.
const reasonLimit = 500 * time.Millisecond

// reach connects to the target's agent, which may be about to be started again.
func (s *sender) reach() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, reachLimit)
	defer cancel()
	for {
		conn, err := s.target.Dial(ctx, s.where, s.id, migration.Control)
		if err == nil {
			return conn, nil
		}
		if s.isAborted() {
			return nil, errAborted
		}
		if !sleep(ctx, sayAgain) {
			return nil, err
		}
	}
}

// sleep waits unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// hello describes the guest as it is.
func (s *sender) hello(disks []string) (*migration.Hello, error) {
	ctx, cancel := context.WithTimeout(s.ctx, actLimit)
	defer cancel()
	ports, err := s.domain.monitor.Ports(ctx)
	if err != nil {
		return nil, err
	}
	h := &migration.Hello{Migration: string(s.migrationUID()), Disks: disks, PostCopy: s.options.PostCopy}
	h.NICs, h.Ports = qemu.NICPorts(ports)
	h.Seed, err = readSeed(s.driver.runDir(s.domain.pod))
	return h, err
}

// readSeed reads the guest's cloud-init disk; nil when it has none. The directory belongs to the pod: a link in it must not lead out.
func readSeed(dir string) ([]byte, error) {
	file, err := os.OpenInRoot(dir, protocol.SeedName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the guest's cloud-init disk: %w", err)
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxSeed))
}

// maxSeed bounds a cloud-init disk in bytes.
const maxSeed = 8 << 20

func (s *sender) hearPrepared(talk *migration.Talk) (*migration.Prepared, error) {
	ctx, cancel := context.WithTimeout(s.ctx, prepareLimit)
	defer cancel()
	word, err := talk.Hear(ctx)
	if err != nil {
		return nil, fmt.Errorf("the target node: %w", err)
	}
	if word.Prepared == nil {
		return nil, errors.New("the target node's agent said something unexpected; are both agents of one version?")
	}
	return word.Prepared, nil
}

// stream joins QEMU to a channel of the target: QEMU's end of a socket pair is given to it under a name.
func (s *sender) stream(ctx context.Context, c migration.Channel, name string) error {
	remote, err := s.target.Dial(ctx, s.where, s.id, c)
	if err != nil {
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		remote.Close()
		return err
	}
	defer theirs.Close()
	s.streams.Go(func() { _ = migration.Splice(s.flow, ours, remote, &s.counter) })
	return s.domain.monitor.GiveFile(ctx, name, theirs)
}

// socketPair is a connected pair of unix sockets: one for this process, the other for QEMU.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket for QEMU: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "migration"), os.NewFile(uintptr(fds[1]), "migration")
	defer ours.Close() // FileConn has its own copy
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make a socket for QEMU: %w", err)
	}
	return conn, theirs, nil
}

func mirrorOf(node string) string { return "mirror-" + node }
func remoteOf(node string) string { return "remote-" + node }

// copyDisks begins to mirror the disks and waits until both sides are equal. Of those with the same base only what lies above it is copied.
func (s *sender) copyDisks(disks, sameBases []string) error {
	for _, node := range disks {
		how := qmp.MirrorAll
		if slices.Contains(sameBases, node) {
			how = qmp.MirrorTop
		}
		ctx, cancel := context.WithTimeout(s.ctx, 2*actLimit)
		err := s.mirror(ctx, node, how)
		cancel()
		if err != nil {
			return fmt.Errorf("copy disk %s: %w", node, err)
		}
	}
	if len(disks) == 0 {
		return nil
	}
	return s.awaitMirrors(len(disks))
}

func (s *sender) mirror(ctx context.Context, node, how string) error {
	if err := s.stream(ctx, migration.Block, remoteOf(node)); err != nil {
		return err
	}
	if err := s.domain.monitor.AddNBD(ctx, remoteOf(node), node, remoteOf(node)); err != nil {
		return err
	}
	return s.domain.monitor.Mirror(ctx, mirrorOf(node), node, remoteOf(node), how, s.options.Bandwidth)
}

func (s *sender) awaitMirrors(count int) error {
	budget := migrate.NewMonitor(s.options, time.Now())
	for {
		jobs, err := s.jobs()
		if err != nil {
			return err
		}
		ready, progress := 0, migrate.Progress{}
		for _, job := range jobs {
			progress.Remaining += job.Length - job.Offset
			progress.Total += job.Length
			if job.Ready {
				ready++
			}
		}
		switch {
		case len(jobs) < count:
			return errors.New("copying a disk failed; is the target node's disk full?")
		case ready == count:
			return nil
		case s.isAborted():
			return errAborted
		}
		if order := budget.Look(time.Now(), progress); order.Abort != "" {
			return verdict(order.Abort)
		}
		if !sleep(s.ctx, monitorInterval/4) {
			return s.ctx.Err()
		}
	}
}

func (s *sender) jobs() ([]qmp.BlockJob, error) {
	ctx, cancel := context.WithTimeout(s.ctx, actLimit)
	defer cancel()
	return s.domain.monitor.BlockJobs(ctx)
}
