package main

import (
	"io/fs"
	"path/filepath"
	"strings"

	"patchbay/internal/image"
)

// toolbox makes the image that pods of examples and tests run: the tiny guest's programs and its services, without a kernel.
func (b builder) toolbox(work string) error {
	packages, err := list("guest/tiny/packages.txt")
	if err != nil {
		return err
	}
	stage, err := b.packages("tiny", packages)
	if err != nil {
		return err
	}
	programs, err := list("guest/toolbox/programs.txt")
	if err != nil {
		return err
	}
	tree := image.NewTree()
	if err := addPrograms(tree, stage, programs); err != nil {
		return err
	}
	if err := addGuestd(tree, work); err != nil {
		return err
	}
	tree.Link("/usr/bin/udplisten", "../sbin/guestd")
	tree.Link("/bin/sh", "dash")
	tree.Bytes("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"))
	tree.Bytes("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	tree.Bytes("/etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	for _, dir := range []string{"/dev", "/proc", "/sys", "/root", "/run", "/var/run"} {
		tree.Dir(dir, 0o755, 0, 0)
	}
	tree.Dir("/tmp", 0o777|fs.ModeSticky, 0, 0)
	if err := addApplets(tree, filepath.Join(stage, "bin/busybox")); err != nil {
		return err
	}
	return b.save("toolbox", "patchbay.io/guest/toolbox:latest", image.Config{
		Cmd: []string{"/usr/sbin/guestd", "answer", "80"},
		Env: []string{"PATH=" + strings.Join([]string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":"), "HOME=/root"},
	}, tree)
}
