package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"patchbay/internal/image"
	"patchbay/internal/launcher/userfault"
)

// launcherBinary is built beside patchbay itself; it is the first process of a virtual machine's pod.
const launcherBinary = "bin/patchbay-launcher"

// launcher makes the image of virtual machines' pods from this host's own QEMU.
func (b builder) launcher(work string) error {
	tree, err := launcherTree(work)
	if err != nil {
		return err
	}
	return b.save("launcher", "patchbay.io/launcher:latest", image.Config{
		Entrypoint: []string{"/patchbay-launcher"},
		Env:        []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=/tmp"},
		User:       "107:107",
	}, tree)
}

func launcherTree(work string) (*image.Tree, error) {
	wanted, err := hostFiles("guest/launcher/files.txt")
	if err != nil {
		return nil, err
	}
	files, err := image.Closure("/", wanted...)
	if err != nil {
		return nil, err
	}
	tree := image.NewTree()
	for _, f := range files {
		if err := addHostFile(tree, f); err != nil {
			return nil, err
		}
	}
	tree.Host("/patchbay-launcher", launcherBinary)
	library := filepath.Join(work, "userfault.so")
	if err := userfault.Compile(library); err != nil {
		return nil, err
	}
	tree.Host(userfault.Library, library)
	tree.Bytes("/etc/passwd", 0o644, []byte("root:x:0:0::/:/sbin/nologin\nqemu:x:107:107:QEMU:/tmp:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\n"))
	tree.Bytes("/etc/group", 0o644, []byte("root:x:0:\nqemu:x:107:\nnogroup:x:65534:\n"))
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run/patchbay", "/disks", "/volumes"} { // where the pod mounts
		tree.Dir(dir, 0o755, 0, 0)
	}
	tree.Dir("/tmp", 0o777|fs.ModeSticky, 0, 0)
	tree.Dir("/var/tmp", 0o777|fs.ModeSticky, 0, 0)
	return tree, nil
}

// addHostFile adds a file; of a directory, all below it.
func addHostFile(tree *image.Tree, file string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	tree.Host(file, file)
	if info.IsDir() {
		tree.HostDir(file, file)
	}
	return nil
}

// hostFiles reads a list of files, without those that may be missing and are.
func hostFiles(name string) ([]string, error) {
	lines, err := list(name)
	if err != nil {
		return nil, err
	}
	for i, l := range lines {
		file, optional := strings.CutPrefix(l, "?")
		lines[i] = file
		_, err := os.Stat(filepath.Clean(file))
		if optional && errors.Is(err, fs.ErrNotExist) {
			lines[i] = ""
		} else if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" }), nil
}
