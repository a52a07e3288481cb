package ovn

import (
	"context"
	"fmt"
	"testing"
	"time"

	"patchbay/internal/ovn/nb"
)

// benchPorts is the size that the design asks for: 10,000 ports, on 250 nodes.
const (
	benchPorts = 10000
	benchNodes = 250
)

func benchStore(b *testing.B, s *server) *Store {
	b.Helper()
	store := NewStore(Config{Dial: s.dial(), Interval: time.Microsecond, Log: quiet()})
	for i := range benchNodes {
		name := fmt.Sprintf("node-%d", i)
		store.Set("node/"+name, []nb.Row{switchRow(name)})
	}
	for i := range benchPorts {
		name := fmt.Sprintf("default_p%d", i)
		store.Set("pod/"+name, []nb.Row{portRow(fmt.Sprintf("node-%d", i%benchNodes), name)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = store.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	if err := store.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
	return store
}

// BenchmarkOneMorePort is the time from Set to the server's answer beside 10,000 other ports.
func BenchmarkOneMorePort(b *testing.B) {
	store := benchStore(b, startServer(b))
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("default_new%d", i)
		store.Set("pod/"+name, []nb.Row{portRow("node-7", name)})
		if err := store.Wait(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRebuild is the time to fill an empty database with 10,000 ports.
func BenchmarkRebuild(b *testing.B) {
	for b.Loop() {
		benchStore(b, startServer(b))
	}
}
