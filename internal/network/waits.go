package network

import (
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/network/attach"
)

// waits are pods that wait for something that is not theirs: a network, a claim, a free address.
type waits struct {
	mu      sync.Mutex
	version int
	waiting map[string]map[client.ObjectKey]bool
}

func newWaits() *waits { return &waits{waiting: map[string]map[client.ObjectKey]bool{}} }

// now is taken before a pod looks for what it needs.
func (w *waits) now() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.version
}

// add lets a pod wait for everything that an error says. It is false when something has come since the pod looked: it must look
// again then, for it may have missed it.
func (w *waits) add(pod client.ObjectKey, err error, since int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.version != since {
		return false
	}
	for _, on := range awaited(err) {
		if w.waiting[on] == nil {
			w.waiting[on] = map[client.ObjectKey]bool{}
		}
		w.waiting[on][pod] = true
	}
	return true
}

// come takes the pods that waited for any of these.
func (w *waits) come(on ...string) []client.ObjectKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.version++
	var pods []client.ObjectKey
	for _, o := range on {
		for pod := range w.waiting[o] {
			pods = append(pods, pod)
		}
		delete(w.waiting, o)
	}
	return pods
}

// awaited is what the errors in an error wait on.
func awaited(err error) []string {
	switch e := err.(type) {
	case *attach.Waiting:
		return []string{e.On}
	case interface{ Unwrap() []error }:
		var all []string
		for _, inner := range e.Unwrap() {
			all = append(all, awaited(inner)...)
		}
		return all
	case interface{ Unwrap() error }:
		return awaited(e.Unwrap())
	}
	return nil
}
