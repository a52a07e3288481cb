package ovn

import (
	"context"
	"time"
)

// Gate holds northd back. northd deletes from the Southbound database whatever the Northbound one does not say, so an empty
// Northbound database that is about to be rebuilt must not be seen by it.
type Gate interface {
	// Hold stops northd from writing until Release; it does nothing when northd is held already.
	Hold(ctx context.Context) error
	Release()
}

// hold closes the gate when the lost database can be rebuilt at once, that is when all sources have said what they want.
func (s *Store) hold(ctx context.Context) {
	s.mu.Lock()
	complete := s.pending == 0
	s.mu.Unlock()
	if s.config.Gate == nil || !complete {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.config.Gate.Hold(ctx); err != nil {
		s.config.Log.Warn("northd cannot be held while the northbound database is away", "error", err)
	}
}

// release opens the gate once the database is as wanted.
func (s *Store) release() {
	if s.config.Gate != nil {
		s.config.Gate.Release()
	}
}
