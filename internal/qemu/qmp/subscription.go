package qmp

import (
	"context"
	"sync"
)

// Subscription is a stream of events. It holds what was not read yet, so that a slow reader loses nothing and holds nobody up.
type Subscription struct {
	feed *Feed

	mu    sync.Mutex
	queue []Event
	more  chan struct{} // holds a token while the queue may be non-empty or the stream has ended
	err   error
}

// Next waits for the next event. It returns the reason when the monitor has ended and every event before that was read.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		event, ok, err := s.take()
		if ok || err != nil {
			return event, err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Until waits for the first event that match accepts and drops those before it.
func (s *Subscription) Until(ctx context.Context, match func(Event) bool) (Event, error) {
	for {
		event, err := s.Next(ctx)
		if err != nil || match(event) {
			return event, err
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() { s.feed.remove(s) }

func (s *Subscription) take() (Event, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return Event{}, false, s.err
	}
	event := s.queue[0]
	s.queue = s.queue[1:]
	return event, true, nil
}

func (s *Subscription) put(event Event) {
	s.mu.Lock()
	s.queue = append(s.queue, event)
	s.mu.Unlock()
	s.wake()
}

func (s *Subscription) end(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// Feed hands events to subscriptions; its zero value is ready. It is exported for other Monitors.
type Feed struct {
	mu   sync.Mutex
	subs map[*Subscription]bool
	err  error
}

// Subscribe delivers every event from now on.
func (f *Feed) Subscribe() *Subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &Subscription{feed: f, more: make(chan struct{}, 1), err: f.err}
	if f.err == nil {
		if f.subs == nil {
			f.subs = map[*Subscription]bool{}
		}
		f.subs[s] = true
	}
	return s
}

func (f *Feed) remove(s *Subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, s)
}

// Publish hands an event to every subscription.
func (f *Feed) Publish(event Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		s.put(event)
	}
}

// End ends every subscription, present and future, with err.
func (f *Feed) End(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	for s := range f.subs {
		s.end(err)
	}
	f.subs = nil
}
