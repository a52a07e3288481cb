package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// addDirectories mounts directories on paths of the calling thread's mount namespace. A path that the host lacks is made inside only:
// its parent is replaced by one in memory that shows the same things. What the host later adds to that parent is not seen inside.
func addDirectories(sources map[string]string) error {
	inMemory := map[string]bool{}
	for path, source := range sources {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			parent := filepath.Dir(path)
			if !inMemory[parent] {
				if err := replaceByMemory(parent); err != nil {
					return fmt.Errorf("make room for %s: %w", path, err)
				}
				inMemory[parent] = true
			}
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", source, path, err)
		}
	}
	return nil
}

func replaceByMemory(dir string) error {
	original, err := os.Open(dir) // keeps what is about to be covered within reach
	if err != nil {
		return err
	}
	defer original.Close()
	info, err := original.Stat()
	if err != nil {
		return err
	}
	entries, err := original.ReadDir(-1)
	if err != nil {
		return err
	}
	if err := mountScratch(dir, info.Mode().Perm()); err != nil {
		return err
	}
	for _, entry := range entries {
		source := fmt.Sprintf("/proc/thread-self/fd/%d/%s", original.Fd(), entry.Name())
		if err := show(source, filepath.Join(dir, entry.Name()), entry.Type()); err != nil {
			return fmt.Errorf("show %s again: %w", filepath.Join(dir, entry.Name()), err)
		}
	}
	return nil
}

// show makes path the same thing as source.
func show(source, path string, kind fs.FileMode) error {
	switch {
	case kind&fs.ModeSymlink != 0:
		target, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(target, path)
	case kind.IsDir():
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
	}
	err := unix.Mount(source, path, "", unix.MS_BIND|unix.MS_REC, "")
	if errors.Is(err, unix.ENOENT) { // gone in the meantime
		return os.Remove(path)
	}
	return err
}

func mountScratch(path string, mode fs.FileMode) error {
	options := fmt.Sprintf("mode=%o", mode)
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount scratch space on %s: %w", path, err)
	}
	return nil
}
