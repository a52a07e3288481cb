package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// ErrMissed says that the kernel dropped notifications.
var ErrMissed = errors.New("notifications of network devices were lost")

// Watch calls changed whenever the device of the calling thread's namespace appears, changes or disappears, and once at the
// beginning, until the context ends. After ErrMissed call it again.
func Watch(ctx context.Context, device string, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan netlink.LinkUpdate)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		cancel()
		return fmt.Errorf("watch network devices: %w", err)
	}
	defer func() {
		cancel()
		for range updates { // closed by the sender, which may hold one more
		}
	}()
	changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("%w: %w", ErrMissed, err)
		case update, ok := <-updates:
			if !ok {
				return ErrMissed
			}
			if update.Attrs().Name == device {
				changed()
			}
		}
	}
}
