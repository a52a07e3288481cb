package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"time"

	"patchbay/internal/macpool"
)

// The pool that the figures are about.
const (
	poolNICs  = 100_000
	poolTakes = 200_000
)

// measureMAC fills a pool of 2^24 addresses with 100,000 NICs and measures what one more costs: asked for, confirmed, given back.
// The pool is the controller's own; admission adds the API server's time, which is not the pool's.
func measureMAC(_ context.Context, _ *bench) ([]row, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	pool := macpool.New(macpool.Config{Range: macpool.DefaultRange(0xbeef), Random: rand.Uint64N})
	for n := range poolNICs {
		if err := allocate(pool, strconv.Itoa(n)); err != nil {
			return nil, err
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	began := time.Now()
	for range poolTakes {
		if err := allocate(pool, "another"); err != nil {
			return nil, err
		}
		pool.Align(macOwner("another"), time.Time{}, nil)
	}
	perSecond := poolTakes / time.Since(began).Seconds()
	runtime.KeepAlive(pool)
	return []row{
		{Figure: fmt.Sprintf("MAC allocations, pool of 2^24 with %d NICs", poolNICs), Unit: "/s", Ours: perSecond},
		{Figure: fmt.Sprintf("MAC pool's memory for %d NICs", poolNICs), Unit: "MiB", Ours: float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20), Goal: "100"},
	}, nil
}

func macOwner(name string) macpool.Owner {
	return macpool.Owner{Kind: "vm", Namespace: "bench", Name: name}
}

// allocate is the way of one NIC's address: promised at admission, confirmed when the machine is stored.
func allocate(pool *macpool.Pool, name string) error {
	owner, stamp := macOwner(name), pool.Stamp(time.Now(), time.Time{})
	got, err := pool.Take(owner, stamp, []macpool.Wish{{NIC: "default"}})
	if err != nil {
		return err
	}
	pool.Align(owner, stamp, map[string]macpool.Address{"default": got[0]})
	return nil
}
