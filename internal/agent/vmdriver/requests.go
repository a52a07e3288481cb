package vmdriver

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"patchbay/internal/agent/access"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qga"
)

// Freeze implements access.Machine. Whoever freezes may be gone before they unfreeze: a limit lets the guest go on by itself.
func (a *attached) Freeze(ctx context.Context, limit time.Duration) error {
	_, err := ask(ctx, a, func(ctx context.Context, c *qga.Client) (int, error) { return c.Freeze(ctx) })
	if err != nil {
		return fmt.Errorf("freeze the guest's file systems: %w", err)
	}
	a.domain.setFrozen(true)
	if limit > 0 {
		a.domain.running.Go(func() { a.thawAfter(limit) })
	}
	return nil
}

// Unfreeze implements access.Machine.
func (a *attached) Unfreeze(ctx context.Context) error {
	_, err := ask(ctx, a, func(ctx context.Context, c *qga.Client) (int, error) { return c.Thaw(ctx) })
	if err != nil {
		return fmt.Errorf("unfreeze the guest's file systems: %w", err)
	}
	a.domain.setFrozen(false)
	return nil
}

func (a *attached) thawAfter(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-a.domain.ctx.Done():
		return
	case <-timer.C:
	}
	if err := a.Unfreeze(a.domain.ctx); err != nil {
		a.domain.log.Warn("the guest's file systems stay frozen", "error", err)
	}
}

func (d *domain) setFrozen(frozen bool) {
	d.update(func(s *vmstate.Domain) { s.Frozen = frozen })
}

// screenshotLimit is how large a picture may be, in bytes.
const screenshotLimit = 64 << 20

// Screenshot implements access.Machine. QEMU writes the picture to the pod's memory, from where it is taken.
func (a *attached) Screenshot(ctx context.Context) ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	const name = "screen.png"
	a.domain.screenshots.Lock()
	defer a.domain.screenshots.Unlock()
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	if err := a.domain.monitor.Screenshot(ctx, path.Join(protocol.RunDir, name)); err != nil {
		return nil, fmt.Errorf("take a picture of the guest's screen: %w", err)
	}
	file, err := a.domain.dir.OpenFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the picture of the guest's screen: %w", err)
	}
	defer file.Close()
	defer func() { _ = a.domain.dir.Remove(name) }() // the next one replaces it
	picture, err := io.ReadAll(io.LimitReader(file, screenshotLimit))
	if err != nil {
		return nil, fmt.Errorf("read the picture of the guest's screen: %w", err)
	}
	return picture, nil
}

// MigrationProgress implements access.Machine.
func (a *attached) MigrationProgress(ctx context.Context) (p access.MigrationProgress, err error) {
	err = a.do(ctx, func(ctx context.Context, d *domain) error {
		m, err := d.monitor.Migration(ctx)
		p = access.MigrationProgress{
			State: m.Status, TotalBytes: m.RAM.Total, RemainingBytes: m.RAM.Remaining, TransferredBytes: m.RAM.Transferred,
			BitsPerSecond: int64(m.RAM.MBps * 1e6), DowntimeMilliseconds: cmp.Or(m.Downtime, m.Expected), ElapsedMilliseconds: m.TotalTime,
		}
		return err
	})
	return p, err
}
