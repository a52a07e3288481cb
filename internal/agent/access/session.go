package access

import (
	"context"
	"errors"
	"sync"
	"syscall"
)

// errBusy says that somebody else holds what was to be preserved.
var errBusy = errors.New("another session is active")

// sessions gives each key to one holder at a time. The zero value is ready.
type sessions struct {
	mu     sync.Mutex
	active map[string]*session
}

type session struct {
	end  context.CancelFunc
	done chan struct{}
}

// take ends the session that holds the key, waits until it has let go and holds the key until release is called. The returned
// context ends when another session takes over. With preserve a held key is left alone: errBusy.
func (s *sessions) take(ctx context.Context, key string, preserve bool) (held context.Context, release func(), err error) {
	held, end := context.WithCancel(ctx)
	mine := &session{end: end, done: make(chan struct{})}
	for {
		other := s.hold(key, mine)
		if other == nil {
			return held, func() { s.release(key, mine) }, nil
		}
		if preserve {
			end()
			return nil, nil, errBusy
		}
		other.end()
		select {
		case <-other.done:
		case <-ctx.Done():
			end()
			return nil, nil, ctx.Err()
		}
	}
}

// hold registers mine if nobody else is there, and returns who is.
func (s *sessions) hold(key string, mine *session) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.active[key]; other != nil {
		return other
	}
	if s.active == nil {
		s.active = map[string]*session{}
	}
	s.active[key] = mine
	return nil
}

func (s *sessions) release(key string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, key)
	mine.end()
	close(mine.done)
}

// gate counts who is inside, until it closes. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside.Add(1)
	return true
}

func (g *gate) leave() { g.inside.Done() }

// close lets nobody in any more and waits until all have left.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
