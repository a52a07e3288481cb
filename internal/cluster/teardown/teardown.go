package teardown

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/cgroup"
	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// Report tells what was removed.
type Report struct {
	Name       string   `json:"name"`
	Existed    bool     `json:"existed"` // there was something to remove
	Processes  int      `json:"processes"`
	Namespaces []string `json:"namespaces"`
	Directory  string   `json:"directory"`
}

// ErrOtherHome says that there is only a cluster of the same name which is not the caller's.
var ErrOtherHome = errors.New("the running cluster of this name has another home directory")

// Run removes a cluster. Run again, or on half a cluster, it removes what is left.
func Run(ctx context.Context, c layout.Cluster) (Report, error) {
	report := Report{Name: c.Name, Directory: c.Dir(), Namespaces: networkNames(c)}
	id := Identity{Mark: c.Dir(), Cgroup: c.CgroupParent(), Namespaces: namespaceInodes(c, report.Namespaces)}
	_, err := os.Stat(c.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		other, err := id.otherHome()
		if err != nil {
			return report, err
		}
		if other != "" {
			return report, fmt.Errorf("%w: it lives in %s; set %s=%s to remove it", ErrOtherHome, other, layout.HomeVariable, filepath.Dir(other))
		}
	}
	report.Existed = err == nil || len(report.Namespaces) > 0 || cgroup.Exists(c.CgroupParent())
	if report.Processes, err = id.killAll(ctx); err != nil {
		return report, err
	}
	report.Existed = report.Existed || report.Processes > 0
	// Every step is tried: what one leaves must not keep the others from their part.
	return report, errors.Join(
		fabric.Unexpose(ctx, c),
		fabric.Delete(c, report.Namespaces),
		namespace.UnmountBelow(c.Dir()),
		detachLoops(c.Dir()),
		cgroup.Remove(ctx, c.CgroupParent()),
		removeFiles(c),
	)
}

// networkNames finds the cluster's network namespaces by their names; how many nodes there were need not be known.
func networkNames(c layout.Cluster) []string {
	pattern := regexp.MustCompile("^" + regexp.QuoteMeta("pb-"+c.Name) + `-(fabric|node-[0-9]+)$`)
	entries, err := os.ReadDir(filepath.Dir(namespace.NetworkPath("x")))
	if err != nil {
		return nil
	}
	var names []string
	for _, entry := range entries {
		if pattern.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	sort.Strings(names)
	return names
}

// namespaceInodes identifies the namespaces. The caller's own are left out: nothing may make the whole host look like the cluster.
func namespaceInodes(c layout.Cluster, names []string) map[uint64]bool {
	inodes := map[uint64]bool{}
	for _, name := range names {
		if inode := namespace.NetworkInode(name); inode != 0 {
			inodes[inode] = true
		}
	}
	pins, err := filepath.Glob(filepath.Join(c.Mounts(), "*"))
	if err != nil {
		return inodes
	}
	for _, pin := range pins {
		var stat unix.Stat_t
		if namespace.IsMountPin(pin) && unix.Stat(pin, &stat) == nil {
			inodes[stat.Ino] = true
		}
	}
	for _, own := range []string{"/proc/self/ns/net", "/proc/self/ns/mnt", "/proc/1/ns/net", "/proc/1/ns/mnt"} {
		var stat unix.Stat_t
		if unix.Stat(own, &stat) == nil {
			delete(inodes, stat.Ino)
		}
	}
	return inodes
}

// detachLoops frees block devices that stand for files of the cluster; kubelet makes them for block volumes.
func detachLoops(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || len(backing) <= len(dir) || string(backing[:len(dir)+1]) != dir+"/" {
			continue
		}
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(file))))
		errs = append(errs, detachLoop(device))
	}
	return errors.Join(errs...)
}

func detachLoop(device string) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.IoctlSetInt(int(file.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach %s: %w", device, err)
	}
	return nil
}

// removeFiles removes the state directory, and in it last the file that tells that it is a cluster's.
func removeFiles(c layout.Cluster) error {
	entries, err := os.ReadDir(c.Dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if path := filepath.Join(c.Dir(), entry.Name()); path != c.ConfigFile() {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove the cluster's files: %w", err)
			}
		}
	}
	if err := os.RemoveAll(c.Dir()); err != nil {
		return fmt.Errorf("remove the cluster's files: %w", err)
	}
	// An empty directory of names is what `up` may have made.
	_ = unix.Rmdir(filepath.Dir(namespace.NetworkPath("x")))
	return nil
}
