package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock is a file lock that the kernel gives back when its holder dies.
type lock struct{ file *os.File }

var errLocked = errors.New("locked by another process")

// takeLock locks a file without waiting. A holder may remove the file, so the locked one must still be the one at the path.
func takeLock(path string) (*lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			file.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if isAt(file, path) {
			return &lock{file}, nil
		}
		file.Close()
	}
}

func isAt(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

func (l *lock) release() { l.file.Close() }

// remove gives the lock back together with its file.
func (l *lock) remove() error {
	defer l.file.Close()
	return os.Remove(l.file.Name())
}
