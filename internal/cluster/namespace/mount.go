package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounts describes a mount namespace: the host's file system with some paths replaced. Mounts of the host arrive inside; mounts
// made inside never leave it, and all of them vanish with the last process and the pin.
type Mounts struct {
	// Pin is the file that keeps the namespace while no process is in it. Its directory is made a mount of its own, because
	// the kernel refuses to pin a mount namespace on a shared mount.
	Pin string
	// Scratch are directories that get an empty file system in memory.
	Scratch []string
	// Binds replace a path (key) by another file or directory (value). Paths that the host lacks are left out.
	Binds map[string]string
	// Directories replace a directory (key) by another (value), also where the host has no such directory.
	Directories map[string]string
}

// EnsureMounts makes the namespace unless its pin exists, and tells whether it is new.
func EnsureMounts(m Mounts) (bool, error) {
	if IsMountPin(m.Pin) {
		return false, nil
	}
	if err := preparePin(m.Pin); err != nil {
		return false, fmt.Errorf("pin mount namespace %s: %w", m.Pin, err)
	}
	made := make(chan int)
	pinned := make(chan error)
	finished := make(chan error, 1)
	go func() { finished <- onFreshThread(func() error { return m.build(made, pinned) }) }()
	select {
	case err := <-finished:
		return false, fmt.Errorf("make mount namespace %s: %w", m.Pin, err)
	case tid := <-made:
		// Pinned from outside: a namespace cannot be bound inside itself.
		pinned <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", tid), m.Pin, "", unix.MS_BIND, "")
	}
	if err := <-finished; err != nil {
		return false, fmt.Errorf("make mount namespace %s: %w", m.Pin, err)
	}
	return true, nil
}

// build runs on the new namespace's first thread and keeps it alive until it is pinned.
func (m Mounts) build(made chan<- int, pinned <-chan error) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("stop mounts from leaving: %w", err)
	}
	for path, source := range m.Binds {
		if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("bind %s to %s: %w", source, path, err)
		}
	}
	if err := addDirectories(m.Directories); err != nil {
		return err
	}
	for _, path := range m.Scratch {
		if err := mountScratch(path, 0o755); err != nil {
			return err
		}
	}
	made <- unix.Gettid()
	return <-pinned
}

// EnterMounts moves the calling thread into a pinned mount namespace. The caller has locked its goroutine to the thread and never
// unlocks it.
func EnterMounts(pin string) error {
	// A thread that shares its root and working directory with others may not change mount namespaces.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter mount namespace %s: %w", pin, err)
	}
	return enter(pin, unix.CLONE_NEWNS)
}

// IsMountPin tells whether a file pins a namespace.
func IsMountPin(pin string) bool { return isNetwork(pin) }

// preparePin makes the file and turns its directory into a private mount.
func preparePin(pin string) error {
	dir := filepath.Dir(pin)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := MountsBelow(dir)
	if err != nil {
		return err
	}
	if len(mounted) == 0 {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return os.WriteFile(pin, nil, 0o400)
}

// MountsBelow lists the mount points at and below a directory in the calling process's mount namespace, in the order in which
// they were made.
func MountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return mountsBelow(string(data), dir), nil
}

func mountsBelow(mountinfo, dir string) []string {
	var found []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	return found
}

// unescape reverts the kernel's octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// UnmountBelow removes every mount at and below a directory, the last made first.
func UnmountBelow(dir string) error {
	mounts, err := MountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		err := unix.Unmount(mounts[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i], err))
		}
	}
	return errors.Join(errs...)
}
