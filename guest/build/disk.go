package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"patchbay/internal/image"
)

// disk is a bootable disk image: a FAT partition with SYSLINUX, the kernel and its first file system, and an ext4
// partition. It is put together without mounting anything.
type disk struct {
	work    string // directory for intermediate files
	kernel  string
	initrd  string
	cmdline string // kernel command line
	root    string // directory with the content of the root file system
	label   string // of the root file system
	bootMiB int64
	rootMiB int64
	// compressed makes the result small instead of fast to read.
	compressed bool
}

const mib = 1 << 20

// write makes the disk as a qcow2 file.
func (d disk) write(out string) error {
	raw := filepath.Join(d.work, "disk.raw")
	if err := d.partition(raw); err != nil {
		return err
	}
	if err := d.bootPartition(raw); err != nil {
		return err
	}
	if err := d.rootPartition(raw); err != nil {
		return err
	}
	args := []string{"convert", "-f", "raw", "-O", "qcow2"}
	if d.compressed {
		args = append(args, "-c", "-o", "compression_type=zstd")
	}
	if _, err := run("qemu-img", append(args, raw, out)...); err != nil {
		return err
	}
	return os.Remove(raw)
}

// partition makes the empty disk with a master boot record: FAT from 1 MiB on (active), then Linux.
func (d disk) partition(raw string) error {
	boot, err := os.ReadFile("/usr/lib/syslinux/mbr/mbr.bin")
	if err != nil {
		return fmt.Errorf("%w; install syslinux-common", err)
	}
	record := make([]byte, 512)
	copy(record[:440], boot)
	copy(record[440:], "PBAY") // disk signature
	entry := func(n int, active bool, kind byte, startMiB, sizeMiB int64) {
		e := record[446+16*n:]
		if active {
			e[0] = 0x80
		}
		copy(e[1:8], []byte{0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff}) // cylinders unused
		binary.LittleEndian.PutUint32(e[8:], uint32(startMiB*mib/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(sizeMiB*mib/512))
	}
	entry(0, true, 0x0c, 1, d.bootMiB)
	entry(1, false, 0x83, 1+d.bootMiB, d.rootMiB)
	record[510], record[511] = 0x55, 0xaa
	if err := os.WriteFile(raw, record, 0o644); err != nil {
		return err
	}
	return os.Truncate(raw, (1+d.bootMiB+d.rootMiB)*mib)
}

func (d disk) bootPartition(raw string) error {
	config := filepath.Join(d.work, "syslinux.cfg")
	text := "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  KERNEL /vmlinuz\n  INITRD /initrd.img\n  APPEND " + d.cmdline + "\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	at := fmt.Sprintf("%s@@%d", raw, mib)
	for _, step := range [][]string{
		{"mkfs.vfat", "-F", "32", "-s", "1", "-n", "BOOT", "-i", "50424159", fmt.Sprintf("--offset=%d", mib/512), raw, fmt.Sprint(d.bootMiB * 1024)},
		{"mcopy", "-i", at, d.kernel, "::/vmlinuz"},
		{"mcopy", "-i", at, d.initrd, "::/initrd.img"},
		{"mcopy", "-i", at, config, "::/syslinux.cfg"},
		{"syslinux", "--install", "--offset", fmt.Sprint(mib), raw},
	} {
		if _, err := run(step[0], step[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (d disk) rootPartition(raw string) error {
	options := fmt.Sprintf("offset=%d,hash_seed=70617463-6862-4179-8000-000000000002,lazy_itable_init=1,nodiscard", (1+d.bootMiB)*mib)
	_, err := run("mkfs.ext4", "-q", "-F", "-d", d.root, "-L", d.label, "-U", "70617463-6862-4179-8000-000000000001",
		"-O", "^metadata_csum,^64bit", "-E", options, "-m", "0", raw, fmt.Sprintf("%dM", d.rootMiB))
	return err
}

// extract writes a tree to a directory, with owners.
func extract(tree *image.Tree, dir string) error {
	entries, err := tree.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := extractEntry(e, filepath.Join(dir, e.Path)); err != nil {
			return err
		}
	}
	for i := len(entries) - 1; i >= 0; i-- { // directories last: adding files changes their time
		if e := entries[i]; e.Link == "" {
			if err := os.Chtimes(filepath.Join(dir, e.Path), image.Epoch, image.Epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

func extractEntry(e *image.Entry, path string) error {
	switch {
	case e.Link != "":
		if err := os.Symlink(e.Link, path); err != nil {
			return err
		}
		return os.Lchown(path, e.UID, e.GID)
	case e.Mode.IsDir():
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	default:
		if err := copyEntry(e, path); err != nil {
			return err
		}
	}
	if err := os.Lchown(path, e.UID, e.GID); err != nil {
		return err
	}
	return os.Chmod(path, e.Mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
}

func copyEntry(e *image.Entry, path string) error {
	in, err := e.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	return create(path, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}
