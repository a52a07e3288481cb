package ovn

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"patchbay/internal/ovn/nb"
)

// holdingDatabase is a database that keeps every transaction waiting while it is told to.
type holdingDatabase struct {
	Database
	hold chan struct{}
	fail *atomic.Bool
}

func (d holdingDatabase) Apply(ctx context.Context, ops []Op) error {
	select {
	case <-d.hold:
	case <-ctx.Done():
		return ctx.Err()
	}
	if d.fail.Load() {
		return errors.New("refused by the test")
	}
	return d.Database.Apply(ctx, ops)
}

func TestGoneIsSaidWhenTheDatabaseSaysSo(t *testing.T) {
	onBoth(t, func(t *testing.T, dial Dial, _ func()) {
		hold, fail := make(chan struct{}), &atomic.Bool{}
		s := NewStore(config(func(ctx context.Context, changed func(Change)) (Database, error) {
			db, err := dial(ctx, changed)
			return holdingDatabase{Database: db, hold: hold, fail: fail}, err
		}))
		complete := s.Expect()
		if s.Gone("network/red") {
			t.Error("gone before there was a connection")
		}
		start(t, s)
		s.Set("network/red", []nb.Row{switchRow("red")})
		hold <- struct{}{}
		complete()
		wait(t, s)
		if s.Gone("network/red") || !s.Gone("network/blue") {
			t.Error("what has rows is gone, or what never was is not")
		}
		fail.Store(true)
		s.Delete("network/red")
		hold <- struct{}{} // refused
		if s.Gone("network/red") {
			t.Error("gone though the database still has it")
		}
		fail.Store(false)
		close(hold) // the next try comes by itself
		wait(t, s)
		if !s.Gone("network/red") {
			t.Error("not gone though the database has nothing left")
		}
	})
}
