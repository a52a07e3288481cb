package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/migration"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/migrate"
	"patchbay/internal/qemu/qmp"
)

const memoryStream = "migration"

// stillAnnotation has a guest stand still while its memory is copied: its one pass ends for certain, whatever the guest does.
const stillAnnotation = "patchbay.io/migrate-still"

// copyMemory runs QEMU's migration until everything is on the target or, with post-copy, until the guest must run there.
func (s *sender) copyMemory(disks []string) error {
	events := s.domain.monitor.Subscribe()
	defer events.Close()
	if err := s.startMemory(); err != nil {
		return err
	}
	monitor := migrate.NewMonitor(s.options, time.Now())
	news, switched := "", false
	for {
		progress, err := s.look(news, switched)
		if err != nil {
			return err
		}
		switch progress.Status {
		case qmp.MigrationCompleted, qmp.MigrationPostCopy:
			return nil
		case qmp.MigrationFailed:
			return fmt.Errorf("QEMU could not send the guest: %s", progress.Error)
		case qmp.MigrationCancelled:
			return s.whyCancelled()
		case qmp.MigrationSwitchover:
			if !switched { // QEMU may take a moment to go on
				switched, err = true, s.switchOver(disks)
			}
		default:
			err = s.steer(monitor, progress)
		}
		if err != nil {
			return err
		}
		news = s.awaitNews(events)
	}
}

// look asks QEMU how the migration goes, unless its own news say enough: the guest stands still then, and every question would have it stand
// for longer.
func (s *sender) look(news string, switched bool) (qmp.Migration, error) {
	if news == qmp.MigrationCompleted || news == qmp.MigrationSwitchover && !switched {
		return qmp.Migration{Status: news}, nil
	}
	return s.progress()
}

func (s *sender) startMemory() error {
	ctx, cancel := context.WithTimeout(s.ctx, 2*actLimit)
	defer cancel()
	m := s.domain.monitor
	if s.vmi.Annotations[stillAnnotation] == "true" {
		if err := s.holdStill(ctx); err != nil {
			return err
		}
	}
	err := m.SetMigrationCapabilities(ctx, map[string]bool{
		"events": true, "return-path": true, "pause-before-switchover": true, "late-block-activate": true,
		"auto-converge": s.options.AutoConverge, "postcopy-ram": s.options.PostCopy,
	})
	if err != nil {
		return err
	}
	if err := m.SetMigrationParameters(ctx, s.options.Parameters()); err != nil {
		return err
	}
	if err := s.stream(ctx, migration.Memory, memoryStream); err != nil {
		return err
	}
	return m.Migrate(ctx, "fd:"+memoryStream)
}

func (s *sender) progress() (qmp.Migration, error) {
	ctx, cancel := context.WithTimeout(s.ctx, actLimit)
	defer cancel()
	return s.domain.monitor.Migration(ctx)
}

// awaitNews returns when the migration changes, with its new state, or when it is time to look.
func (s *sender) awaitNews(events *qmp.Subscription) string {
	ctx, cancel := context.WithTimeout(s.ctx, monitorInterval)
	defer cancel()
	var news qmp.MigrationData
	event, err := events.Until(ctx, func(e qmp.Event) bool { return e.Name == qmp.EventMigration })
	if err != nil || event.Decode(&news) != nil {
		return ""
	}
	return news.Status
}

func (s *sender) whyCancelled() error {
	if s.isAborted() {
		return errAborted
	}
	return errors.New("QEMU cancelled the migration")
}

// steer does what the progress asks for.
func (s *sender) steer(monitor *migrate.Monitor, p qmp.Migration) error {
	ctx, cancel := context.WithTimeout(s.ctx, actLimit)
	defer cancel()
	m := s.domain.monitor
	if s.isAborted() {
		return m.MigrateCancel(ctx)
	}
	order := monitor.Look(time.Now(), migrate.Progress{
		Total: p.RAM.Total, Remaining: p.RAM.Remaining, Transferred: p.RAM.Transferred, Active: p.Status == qmp.MigrationActive,
		Passes: p.RAM.Passes,
	})
	switch {
	case order.Abort != "":
		_ = m.MigrateCancel(ctx)
		return verdict(order.Abort)
	case order.PostCopy:
		s.update(func(state *vmstate.Sending) { state.Mode = virtv1.MigrationPostCopy })
		return m.StartPostCopy(ctx)
	case order.Pause:
		return s.holdStill(ctx)
	case order.DowntimeMS != 0:
		return m.SetMigrationParameters(ctx, map[string]any{"downtime-limit": order.DowntimeMS})
	}
	return nil
}

// holdStill stops the guest, so that nothing changes any more. It is noted first: should this agent be killed, the next one lets the guest
// run again. A guest that its user has paused stands still already.
func (s *sender) holdStill(ctx context.Context) error {
	if !s.domain.guestRan() {
		return nil
	}
	if err := s.driver.note(s.vmi.UID, gift{Held: s.migrationUID()}); err != nil {
		return err
	}
	s.update(func(state *vmstate.Sending) { state.Mode = virtv1.MigrationPaused })
	return s.domain.monitor.Pause(ctx)
}

// switchOver ends the mirrors at the moment when the guest stands still, and lets QEMU send the rest.
func (s *sender) switchOver(disks []string) error {
	ctx, cancel := context.WithTimeout(s.ctx, actLimit)
	defer cancel()
	if s.isAborted() {
		return s.domain.monitor.MigrateCancel(ctx)
	}
	events := s.domain.monitor.Subscribe()
	defer events.Close()
	for _, node := range disks {
		if err := s.domain.monitor.EndMirror(ctx, mirrorOf(node), false); err != nil {
			return fmt.Errorf("copy disk %s: %w", node, err)
		}
	}
	for {
		jobs, err := s.jobs()
		if err != nil {
			return err
		}
		if len(jobs) == 0 {
			break
		}
		if _, err := events.Until(ctx, func(e qmp.Event) bool { return e.Name == "BLOCK_JOB_COMPLETED" || e.Name == "JOB_STATUS_CHANGE" }); err != nil {
			return fmt.Errorf("the disks could not be copied to the end: %w", err)
		}
	}
	if len(disks) > 0 {
		if err := s.talk.Say(migration.Word{Copied: &migration.Copied{}}); err != nil {
			return err
		}
	}
	return s.domain.monitor.ContinueMigration(ctx, qmp.MigrationSwitchover)
}

// takeBack removes from QEMU what a migration that failed has left, so that another can begin. When it went well, QEMU ends soon.
func (s *sender) takeBack(disks []string) {
	if s.driver.gift(s.vmi.UID).Migration == s.migrationUID() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), cleanLimit)
	defer cancel()
	m := s.domain.monitor
	if p, err := m.Migration(ctx); err == nil && p.Status != qmp.MigrationCompleted {
		_ = m.MigrateCancel(ctx)
	}
	for _, node := range disks {
		_ = m.EndMirror(ctx, mirrorOf(node), true)
	}
	for ctx.Err() == nil {
		jobs, err := m.BlockJobs(ctx)
		if err != nil || len(jobs) == 0 {
			break
		}
		sleep(ctx, monitorInterval/4)
	}
	for _, node := range disks {
		_ = m.RemoveNode(ctx, remoteOf(node))
	}
	_ = m.SetMigrationCapabilities(ctx, map[string]bool{"auto-converge": false, "postcopy-ram": false, "pause-before-switchover": false})
	if err := s.driver.letGo(ctx, s.vmi.UID, m); err != nil {
		s.log.Warn("cannot let the guest run again", "error", err)
	}
}

// record notes that the guest is given away, and says so. From the note on it never runs here again.
func (s *sender) record(talk *migration.Talk) (taken bool, err error) {
	held := s.driver.gift(s.vmi.UID).Held == s.migrationUID() // not by its user
	g := gift{Migration: s.migrationUID(), Running: held || s.domain.guestRan()}
	if err := s.driver.note(s.vmi.UID, g); err != nil {
		return false, err
	}
	err = talk.Say(migration.Word{Go: &migration.Go{Migration: string(g.Migration), Running: g.Running}})
	s.log.Info("the guest is the target's now", "bytes", s.counter.Sent())
	if err == nil {
		select {
		case last := <-s.heard:
			taken = last.err == nil && last.word.Taken != nil
		case <-time.After(2 * actLimit):
		case <-s.ctx.Done():
		}
	}
	if s.describe().Mode == virtv1.MigrationPostCopy {
		s.finishPostCopy()
	}
	return taken, nil
}

// finishPostCopy waits until the memory has followed the guest.
func (s *sender) finishPostCopy() {
	for s.ctx.Err() == nil {
		p, err := s.progress()
		if err != nil || p.Status != qmp.MigrationPostCopy {
			return
		}
		sleep(s.ctx, monitorInterval)
	}
}

// giveAway says Go until the target has heard it. It ends with the sender: another begins where it stopped.
func (s *sender) giveAway() error {
	for s.ctx.Err() == nil {
		if s.sayGo() == nil {
			return nil
		}
		sleep(s.ctx, sayAgain)
	}
	return s.ctx.Err()
}

func (s *sender) sayGo() error {
	place, err := s.driver.MigrationPlace(s.ctx)
	if err != nil {
		return err
	}
	conn, err := s.target.Dial(s.ctx, place.Inside, s.id, migration.Control)
	if err != nil {
		return err
	}
	talk := migration.NewTalk(conn)
	defer talk.Close()
	g := s.driver.gift(s.vmi.UID)
	if err := talk.Say(migration.Word{Go: &migration.Go{Migration: string(g.Migration), Running: g.Running}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*actLimit)
	defer cancel()
	word, err := talk.Hear(ctx)
	if err == nil && word.Taken == nil {
		err = errors.New("the target node's agent said something unexpected")
	}
	return err
}
