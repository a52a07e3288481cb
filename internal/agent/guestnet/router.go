package guestnet

import (
	"context"
	"fmt"
	"time"

	"github.com/mdlayher/ndp"
)

// How often a router that nobody asks advertises itself: first in case the guest was not ready to ask, then to refresh
// what has a lifetime.
const (
	firstAdvertisements = 3
	firstInterval       = 10 * time.Second
	laterInterval       = 200 * time.Second
)

func (s *Server) advertiseRegularly(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for sent := 0; ; sent++ {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		// An error is no reason to stop: the guest's end of the device may be down for now.
		_ = s.router.WriteTo(s.config.advertisement(), nil, allNodes)
		if sent < firstAdvertisements {
			timer.Reset(firstInterval)
		} else {
			timer.Reset(laterInterval)
		}
	}
}

func (s *Server) serveSolicitations() error {
	packet := make([]byte, maxPacket)
	for {
		// ReadFrom would end with an error on some malformed messages, and the guest must not stop its own router.
		n, _, from, err := s.router.ReadRaw(packet)
		if err != nil {
			return fmt.Errorf("router solicitations: %w", err)
		}
		message, err := ndp.ParseMessage(packet[:n])
		if _, ok := message.(*ndp.RouterSolicitation); err != nil || !ok {
			continue
		}
		to := allNodes
		if from = from.WithZone(""); !from.IsUnspecified() {
			to = from
		}
		_ = s.router.WriteTo(s.config.advertisement(), nil, to)
	}
}
