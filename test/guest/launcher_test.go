package guest_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"patchbay/internal/image"
)

// TestLauncherImage runs QEMU from the launcher's image and nothing else, as the user of virtual machines' pods, with the
// devices that those have, until a guest is up.
func TestLauncherImage(t *testing.T) {
	root := unpackImage(t, "../../build/images/launcher.tar", "patchbay.io/launcher:latest")
	for _, dir := range []string{"disks", "run/patchbay"} {
		if err := os.Chown(filepath.Join(root, dir), image.DiskOwner, image.DiskOwner); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(guests, "tiny.qcow2"), filepath.Join(root, "disks/base.qcow2")); err != nil {
		command(t, "cp", filepath.Join(guests, "tiny.qcow2"), filepath.Join(root, "disks/base.qcow2"))
	}
	for _, device := range []string{"null", "zero", "urandom"} {
		info, err := os.Stat("/dev/" + device)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mknod(filepath.Join(root, "dev", device), syscall.S_IFCHR|0o666, int(info.Sys().(*syscall.Stat_t).Rdev)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, "dev", device), 0o666); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	inRoot(t, root, "/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "/disks/base.qcow2", "/disks/root.qcow2")
	inRoot(t, root, "/lib64/ld-linux-x86-64.so.2", "--list", "/usr/bin/passt") // passt itself wants /proc
	m := &machine{t: t, dir: t.TempDir(), exited: make(chan struct{})}
	cmd := chrootCommand(root, "/usr/bin/qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256", "-serial", "stdio",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-display", "none", "-vnc", "unix:/run/patchbay/vnc.sock", "-device", "virtio-vga",
		"-qmp", "unix:/run/patchbay/qmp.sock,server=on,wait=off",
		"-drive", "file=/disks/root.qcow2,if=none,id=root", "-device", "virtio-blk-pci,drive=root,bootindex=1",
		"-device", "virtio-scsi-pci", "-device", "virtio-serial-pci", "-device", "virtio-balloon-pci", "-device", "virtio-rng-pci", "-device", "i6300esb",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0", "-netdev", "user,id=n1", "-device", "e1000,netdev=n1",
		"-netdev", "user,id=n2", "-device", "e1000e,netdev=n2", "-netdev", "user,id=n3", "-device", "rtl8139,netdev=n3",
		"-netdev", "user,id=n4", "-device", "ne2k_pci,netdev=n4", "-netdev", "user,id=n5", "-device", "pcnet,netdev=n5",
	)
	m.run(cmd)
	m.waitFor("login:", bootLimit)
}

// chrootCommand runs a program of an unpacked image as user 107 without any capability.
func chrootCommand(root string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Path = args[0] // inside the new root
	cmd.Err = nil
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: image.DiskOwner, Gid: image.DiskOwner},
	}
	cmd.Dir = "/"
	return cmd
}

func inRoot(t *testing.T, root string, args ...string) {
	t.Helper()
	if out, err := chrootCommand(root, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// unpackImage writes the files of an archive's only image to a directory.
func unpackImage(t *testing.T, archive, name string) string {
	t.Helper()
	images, err := image.ReadArchive(archive, t.TempDir())
	if err != nil {
		t.Fatalf("%v; run \"make image\" first", err)
	}
	if len(images) != 1 || images[0].Name != name {
		t.Fatalf("%s holds %v, want %s", archive, images, name)
	}
	layers, err := images[0].Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // another user looks inside
		t.Fatal(err)
	}
	for _, l := range layers {
		if err := unpackLayer(l, root); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func unpackLayer(layer v1.Layer, root string) error {
	content, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close()
	for files := tar.NewReader(content); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(header, files, filepath.Join(root, header.Name)); err != nil {
			return err
		}
	}
}

func unpackEntry(header *tar.Header, content io.Reader, path string) error {
	switch header.Typeflag {
	case tar.TypeDir:
		return errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, header.FileInfo().Mode()))
	case tar.TypeSymlink:
		return os.Symlink(header.Linkname, path)
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, header.FileInfo().Mode())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	return errors.Join(err, out.Close())
}
