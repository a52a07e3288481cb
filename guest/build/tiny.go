package main

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"patchbay/internal/image"
)

// quick is what makes the kernel start fast in an emulated machine, besides saying less: no waiting for hardware that a
// virtual machine has not, no randomised place, no work against side channels that emulation does not have.
const quick = "quiet loglevel=3 console=tty1 console=ttyS0,115200 net.ifnames=0 nokaslr mitigations=off random.trust_cpu=on " +
	"tsc=reliable no_timer_check cryptomgr.notests i8042.nopnp i8042.noaux 8250.nr_uarts=1 audit=0 apparmor=0 selinux=0 panic=10 initcall_blacklist=crypto_kdf108_init"

func (b builder) tiny(work string) error {
	t, err := b.tinyParts(work)
	if err != nil {
		return err
	}
	initrd, err := makeInitrd(work, t.kernel, t.bootModules)
	if err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	if err := extract(t.root, root); err != nil {
		return err
	}
	out := filepath.Join(work, "tiny.qcow2")
	d := disk{
		work: work, kernel: t.kernel.image(), initrd: initrd, cmdline: quick + " root=LABEL=tiny-root",
		root: root, label: "tiny-root", bootMiB: 40, rootMiB: 216,
	}
	if err := d.write(out); err != nil {
		return err
	}
	return b.containerDisk("tiny", "patchbay.io/guest/tiny:latest", out)
}

// makeInitrd makes the first file system of a disk: it loads the drivers of disks and finds the root file system.
func makeInitrd(work string, k *kernel, modules []string) (string, error) {
	boot := image.NewTree()
	if err := k.addModules(boot, modules); err != nil {
		return "", err
	}
	busybox := filepath.Join(k.root, "bin/busybox")
	boot.Host("/bin/busybox", busybox)
	boot.Link("/sbin/modprobe", "/bin/busybox") // the kernel calls it
	boot.Host("/init", "guest/initrd/init")
	boot.Bytes("/etc/modules", 0o644, []byte(strings.Join(modules, " ")+"\n"))
	for _, dir := range []string{"/dev", "/proc", "/sys", "/root"} {
		boot.Dir(dir, 0o755, 0, 0)
	}
	out := filepath.Join(work, "initrd.img")
	return out, create(out, boot.WriteCpio)
}

// containerDisk makes an image whose directory /disk holds one disk, and keeps the disk itself for tests.
func (b builder) containerDisk(target, name, disk string) error {
	tree, err := image.FromPath(disk)
	if err != nil {
		return err
	}
	if err := b.save(target, name, image.Config{}, tree); err != nil {
		return err
	}
	kept := filepath.Join(b.out, "guests", filepath.Base(disk))
	return errors.Join(os.MkdirAll(filepath.Dir(kept), 0o755), os.Rename(disk, kept))
}

// tinyKernel makes the image for kernelBoot: the same guest as kernel and first file system, all in memory.
func (b builder) tinyKernel(work string) error {
	t, err := b.tinyParts(work)
	if err != nil {
		return err
	}
	t.root.Link("/init", "sbin/init")
	initrd := filepath.Join(work, "initrd")
	if err := create(initrd, compressed(t.root.WriteCpio)); err != nil {
		return err
	}
	tree := image.NewTree()
	tree.Host("/boot/vmlinuz", t.kernel.image())
	tree.Host("/boot/initrd", initrd)
	tree.Chown("/boot", image.DiskOwner, image.DiskOwner)
	if err := b.save("tiny-kernel", "patchbay.io/guest/tiny-kernel:latest", image.Config{Labels: map[string]string{"io.patchbay.kernel-args": quick}}, tree); err != nil {
		return err
	}
	return b.keep("tiny-kernel", tree)
}

// keep leaves an image's files below build/guests for tests.
func (b builder) keep(name string, tree *image.Tree) error {
	dir := filepath.Join(b.out, "guests", name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return extract(tree, dir)
}

// compressed makes what write writes small: both forms of the first file system are in memory for a moment, and guests are
// tight there.
func compressed(write func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		out, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		return errors.Join(write(out), out.Close())
	}
}

type tinyParts struct {
	kernel      *kernel
	root        *image.Tree
	bootModules []string
}

// tinyParts makes the guest's file system.
func (b builder) tinyParts(work string) (*tinyParts, error) {
	packages, err := list("guest/tiny/packages.txt")
	if err != nil {
		return nil, err
	}
	stage, err := b.packages("tiny", packages)
	if err != nil {
		return nil, err
	}
	t := &tinyParts{root: image.NewTree()}
	if t.kernel, err = findKernel(stage); err != nil {
		return nil, err
	}
	programs, err := list("guest/tiny/programs.txt")
	if err != nil {
		return nil, err
	}
	if err := addPrograms(t.root, stage, programs); err != nil {
		return nil, err
	}
	if err := t.modules(); err != nil {
		return nil, err
	}
	if err := addGuestd(t.root, work); err != nil {
		return nil, err
	}
	t.root.HostDir("/", "guest/tiny/rootfs")
	t.root.Link("/usr/sbin/chpasswd", "guestd")
	t.root.Link("/usr/lib/sftp-server", "openssh/sftp-server")
	t.root.Link("/usr/bin/udplisten", "../sbin/guestd")
	t.root.Link("/bin/sh", "dash") // busybox's own shell would run its ip and ping instead of the real ones
	t.root.Link("/etc/mtab", "/proc/mounts")
	t.root.Link("/var/run", "/run")
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/mnt", "/var/log", "/var/lib/guestd", "/etc/dropbear"} {
		t.root.Dir(dir, 0o755, 0, 0)
	}
	t.root.Dir("/tmp", 0o777|os.ModeSticky, 0, 0)
	t.root.Dir("/root", 0o700, 0, 0)
	t.root.Dir("/home/patchbay", 0o755, 1000, 1000)
	return t, addApplets(t.root, filepath.Join(stage, "bin/busybox"))
}

func (t *tinyParts) modules() error {
	all, boot, err := moduleList("guest/tiny/modules.txt")
	t.bootModules = boot
	return errors.Join(err, t.kernel.addModules(t.root, all))
}

// moduleList reads a list of kernel modules; boot are those that the first file system needs too.
func moduleList(file string) (all, boot []string, err error) {
	lines, err := list(file)
	for _, l := range lines {
		name, early := strings.CutPrefix(l, "boot ")
		if early {
			boot = append(boot, name)
		}
		all = append(all, name)
	}
	return all, boot, err
}

// addPrograms copies programs and the libraries that they need from unpacked packages.
func addPrograms(tree *image.Tree, stage string, programs []string) error {
	files, err := image.Closure(stage, programs...)
	if err != nil {
		return err
	}
	for _, f := range files {
		tree.Host(f, filepath.Join(stage, f))
	}
	return nil
}

// crashing are applets that die when they resolve a name: Debian's static busybox (1.35, glibc 2.36) loads the shared libraries of
// the name service into itself. curl, and getent of the real libc, do what they did.
var crashing = []string{"usr/bin/wget", "usr/bin/telnet", "usr/bin/ftpget", "usr/bin/ftpput", "usr/bin/rdate", "usr/bin/tftp"}

// addApplets links busybox under every name that no other program has, in whatever directory.
func addApplets(tree *image.Tree, busybox string) error {
	names, err := run(busybox, "--list-full")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(names) {
		if !isProgram(tree, path.Base(name)) && !slices.Contains(crashing, name) {
			tree.Link("/"+name, "/bin/busybox")
		}
	}
	return nil
}

func isProgram(tree *image.Tree, name string) bool {
	return slices.ContainsFunc([]string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}, func(dir string) bool {
		return tree.Has(path.Join(dir, name))
	})
}

func addGuestd(tree *image.Tree, work string) error {
	out, err := buildGuestd(work)
	tree.Host("/usr/sbin/guestd", out)
	return err
}

// buildGuestd compiles our program for guests and pods.
func buildGuestd(work string) (string, error) {
	out := filepath.Join(work, "guestd")
	_, err := run("env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./guest/guestd")
	return out, err
}
