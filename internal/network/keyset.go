package network

import (
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// keySet is the names of some objects.
type keySet struct {
	mu   sync.Mutex
	keys map[client.ObjectKey]bool
}

func newKeySet() *keySet { return &keySet{keys: map[client.ObjectKey]bool{}} }

func (s *keySet) add(key client.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[key] = true
}

func (s *keySet) remove(key client.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, key)
}

func (s *keySet) all() []client.ObjectKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []client.ObjectKey
	for key := range s.keys {
		out = append(out, key)
	}
	return out
}
