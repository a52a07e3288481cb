package credentials

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
	virtv1 "kubevirt.io/api/core/v1"
)

// Keeper keeps a guest's users as its instance's secrets say.
type Keeper struct {
	Credentials []virtv1.AccessCredential
	Dir         Dir
	Guest       Guest
	// Report is told the outcome of every attempt; nil is success.
	Report func(error)
}

// Times of a Keeper.
const (
	// settle is how long after a change of a secret it is read: the kubelet changes several files.
	settle = 200 * time.Millisecond
	// resync undoes what somebody changed inside the guest: the agent owns the files of these users.
	resync = 5 * time.Minute
	// firstRetry doubles up to lastRetry while the guest does not take what it is given.
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
	// limit is how long a guest may take.
	limit = 30 * time.Second
)

// Run keeps until ctx ends, which is when the guest's agent goes away.
func (k *Keeper) Run(ctx context.Context) {
	changes, stop := k.watch()
	defer stop()
	retry := firstRetry
	for {
		err := k.sync(ctx)
		if ctx.Err() != nil {
			return
		}
		k.Report(err)
		wait := resync
		if err != nil {
			wait, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		if !k.await(ctx, changes, wait) {
			return
		}
	}
}

// await returns when it is time to sync again, or with false at the end.
func (k *Keeper) await(ctx context.Context, changes <-chan fsnotify.Event, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-changes:
			timer.Reset(settle)
		}
	}
}

func (k *Keeper) sync(ctx context.Context) error {
	wanted, err := ForAgent(k.Credentials, k.Dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return apply(ctx, k.Guest, wanted)
}

// watch reports changes of the secrets' directories. Where the kernel cannot watch, the resync has to do.
func (k *Keeper) watch() (<-chan fsnotify.Event, func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, func() {}
	}
	for _, c := range k.Credentials {
		if byAgent(c) {
			_ = watcher.Add(k.Dir(secretOf(c))) // one that is missing is what sync reports
		}
	}
	return watcher.Events, func() { watcher.Close() }
}
