package cni

import (
	"context"
	"errors"
	"testing"
	"time"
)

func held(t *testing.T, acquire func(context.Context) (func(), error)) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	release, err := acquire(ctx)
	if err == nil {
		release()
		return false
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting ended with %v", err)
	}
	return true
}

func TestLocks(t *testing.T) {
	var l locks
	key := func(k string) func(context.Context) (func(), error) {
		return func(ctx context.Context) (func(), error) { return l.lock(ctx, k) }
	}
	release, err := l.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if !held(t, key("a")) || held(t, key("b")) || !held(t, l.lockIdle) {
		t.Error("a held key must exclude itself and lockIdle, nothing else")
	}
	waiting := make(chan func())
	go func() {
		unlock, _ := l.lock(context.Background(), "a")
		waiting <- unlock
	}()
	release()
	(<-waiting)()
	releaseIdle, err := l.lockIdle(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !held(t, key("a")) || !held(t, l.lockIdle) {
		t.Error("lockIdle must exclude everything")
	}
	releaseIdle()
	if held(t, key("a")) || held(t, l.lockIdle) {
		t.Error("something is still held")
	}
}
