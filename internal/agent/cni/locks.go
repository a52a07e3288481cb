package cni

import (
	"context"
	"sync"
)

// locks serialises work per key. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when released
	idle chan struct{}            // not nil while lockIdle holds everything; closed when released
}

// lock waits until nobody holds the key.
func (l *locks) lock(ctx context.Context, key string) (func(), error) {
	for {
		busy := l.try(key)
		if busy == nil {
			return func() { l.release(key) }, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try takes the key, or returns what to wait for.
func (l *locks) try(key string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle != nil {
		return l.idle
	}
	if busy, ok := l.held[key]; ok {
		return busy
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	l.held[key] = make(chan struct{})
	return nil
}

func (l *locks) release(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[key])
	delete(l.held, key)
}

// lockIdle waits until nobody holds any key, and keeps every key. Meanwhile others still get keys, so that a request that
// waits long does not hold up the rest of the node.
func (l *locks) lockIdle(ctx context.Context) (func(), error) {
	for {
		busy := l.tryIdle()
		if busy == nil {
			return l.releaseIdle, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *locks) tryIdle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle != nil {
		return l.idle
	}
	for _, busy := range l.held {
		return busy
	}
	l.idle = make(chan struct{})
	return nil
}

func (l *locks) releaseIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.idle)
	l.idle = nil
}
