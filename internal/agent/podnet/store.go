package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/durable"
)

// Store keeps one record per pod UID in a directory, so that an agent that was killed knows what it had connected. Its methods
// may be called concurrently.
type Store struct {
	dir string

	mu   sync.RWMutex
	pods map[types.UID]Pod
}

const suffix = ".json"

// OpenStore reads the records in dir, which it makes when missing. A record that cannot be read is renamed to *.broken and
// reported in the second result: the pod's devices are then collected like those of any unfinished call.
func OpenStore(dir string) (*Store, []error, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the directory of pod records: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the pod records: %w", err)
	}
	s := &Store{dir: dir, pods: map[types.UID]Pod{}}
	var broken []error
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") { // a write that was killed
			broken = append(broken, os.Remove(filepath.Join(dir, name)))
			continue
		}
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		pod, err := readRecord(filepath.Join(dir, name))
		if err != nil {
			broken = append(broken, err, os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".broken")))
			continue
		}
		s.pods[pod.UID] = pod
	}
	return s, slices.DeleteFunc(broken, func(err error) bool { return err == nil }), nil
}

func readRecord(path string) (Pod, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Pod{}, err
	}
	var pod Pod
	if err := json.Unmarshal(data, &pod); err != nil {
		return Pod{}, fmt.Errorf("pod record %s: %w", path, err)
	}
	if string(pod.UID)+suffix != filepath.Base(path) {
		return Pod{}, fmt.Errorf("pod record %s is of pod UID %q", path, pod.UID)
	}
	return pod, nil
}

// Put writes the pod's record, replacing the one of an earlier sandbox. It is on disk when Put returns.
func (s *Store) Put(pod Pod) error {
	if pod.UID == "" || strings.ContainsRune(string(pod.UID), filepath.Separator) {
		return fmt.Errorf("pod %s/%s has UID %q, which cannot name its record", pod.Namespace, pod.Name, pod.UID)
	}
	data, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(s.dir, string(pod.UID)+suffix), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the record of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[pod.UID] = pod
	return nil
}

// Delete removes the pod's record if it is still the one of the given sandbox.
func (s *Store) Delete(uid types.UID, containerID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pod, ok := s.pods[uid]
	if !ok || pod.ContainerID != containerID {
		return nil
	}
	if err := os.Remove(filepath.Join(s.dir, string(uid)+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	delete(s.pods, uid)
	return nil
}

// Get returns the record of a pod.
func (s *Store) Get(uid types.UID) (Pod, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pod, ok := s.pods[uid]
	return pod, ok
}

// Sandbox returns the record whose sandbox has the ID.
func (s *Store) Sandbox(containerID string) (Pod, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, pod := range s.pods {
		if pod.ContainerID == containerID {
			return pod, true
		}
	}
	return Pod{}, false
}

// List returns all records, ordered by UID.
func (s *Store) List() []Pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pods := make([]Pod, 0, len(s.pods))
	for _, uid := range slices.Sorted(maps.Keys(s.pods)) {
		pods = append(pods, s.pods[uid])
	}
	return pods
}
