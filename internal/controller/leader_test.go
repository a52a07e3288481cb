package controller

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestOnlyOneControllerRunsOnAHost(t *testing.T) {
	c := Config{TLSDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	unlock, err := onlyOne(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := onlyOne(short, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second controller beside the first: error %v, want it to wait", err)
	}
	second := make(chan error, 1)
	go func() {
		again, err := onlyOne(t.Context(), c)
		if err == nil {
			again()
		}
		second <- err
	}()
	unlock()
	if err := <-second; err != nil {
		t.Errorf("a second controller after the first: %v", err)
	}
}
