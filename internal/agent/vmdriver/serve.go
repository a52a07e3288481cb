package vmdriver

import (
	"context"
	"log/slog"
	"time"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/netns"
)

// serveAgain is how long after a failure the servers are opened again.
const serveAgain = time.Second

// keepServing tells a guest its addresses until ctx ends.
func keepServing(ctx context.Context, log *slog.Logger, server *guestnet.Server, path string, config guestnet.Config) {
	for {
		err := server.Serve(ctx)
		if ctx.Err() != nil {
			return
		}
		log.Warn("the guest is not told its addresses; trying again", "netns", path, "error", err)
		for server = nil; server == nil; {
			timer := time.NewTimer(serveAgain)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			if !netns.Exists(path) {
				return // the pod is gone; its guest will be found to be, too
			}
			server, _ = guestnet.Listen(path, config)
		}
	}
}
