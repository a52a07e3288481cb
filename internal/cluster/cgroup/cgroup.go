// Package cgroup makes and removes a cluster's control groups in every hierarchy of the host, of version 1 and 2 alike. Limits are
// the container runtime's business.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchies are the mount points of cgroup file systems.
func hierarchies() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	return parseHierarchies(string(data)), nil
}

// parseHierarchies takes the mount points of whole hierarchies, each once.
func parseHierarchies(mountinfo string) []string {
	var found []string
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		device, root, point := fields[2], fields[3], fields[4]
		if root == "/" && !seen[device] {
			seen[device] = true
			found = append(found, point)
		}
	}
	return found
}

// Ensure makes a group in every hierarchy.
func Ensure(path string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := os.MkdirAll(filepath.Join(point, path), 0o755); err != nil {
			return fmt.Errorf("make control group %s: %w", path, err)
		}
		delegate(point, path)
	}
	return nil
}

// delegate hands the controllers of version 2 down to a group; in version 1 every group has its hierarchy's. Some controllers
// refuse in some configurations, and not all are needed: the kubelet names those that it misses.
func delegate(point, path string) {
	for dir := point; ; {
		controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return
		}
		for _, controller := range strings.Fields(string(controllers)) {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		}
		rest, err := filepath.Rel(dir, filepath.Join(point, path))
		next, _, deeper := strings.Cut(rest, "/")
		if err != nil || !deeper {
			return
		}
		dir = filepath.Join(dir, next)
	}
}

// Remove removes a group and those below it from every hierarchy. Their processes must have been ended; it waits for the kernel to
// take the last of them out.
func Remove(ctx context.Context, path string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		var errs []error
		for _, point := range points {
			errs = append(errs, removeTree(filepath.Join(point, path)))
		}
		err := errors.Join(errs...)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return err
		}
	}
}

// patience is how long a group may stay busy after its processes were ended.
const patience = 5 * time.Second

// removeTree removes directories only: the files in them are the kernel's and go along.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	var errs []error
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// Exists tells whether any hierarchy has the group.
func Exists(path string) bool {
	points, err := hierarchies()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(points, func(point string) bool {
		_, err := os.Stat(filepath.Join(point, path))
		return err == nil
	})
}

// Holds tells whether the text of /proc/PID/cgroup places the process in a group or below it.
func Holds(path, procCgroup string) bool {
	for line := range strings.Lines(procCgroup) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (parts[2] == path || strings.HasPrefix(parts[2], path+"/")) {
			return true
		}
	}
	return false
}
