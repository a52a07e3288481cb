package launcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"patchbay/internal/launcher/protocol"
)

// prepared is a disk that QEMU can open.
type prepared struct {
	path   string
	direct string // on when the file can bypass the page cache
}

// prepareDisk makes one disk. Doing it again replaces what an attempt that failed left.
func (l *Launcher) prepareDisk(ctx context.Context, disk protocol.Disk) (prepared, error) {
	own := filepath.Join(l.cfg.DiskDir, filepath.Base(disk.ID)+".qcow2")
	switch disk.Kind {
	case protocol.Overlay:
		return prepared{own, "off"}, l.makeOverlay(ctx, disk, own)
	case protocol.Empty:
		if disk.SizeBytes <= 0 {
			return prepared{}, errors.New("an empty disk needs a size")
		}
		return prepared{own, "off"}, l.qemuImg(ctx, "create", "-q", "-f", "qcow2", own, strconv.FormatInt(disk.SizeBytes, 10))
	case protocol.File:
		if err := findFile(disk); err != nil {
			return prepared{}, err
		}
		return prepared{disk.Source, direct(disk.Source)}, nil
	case protocol.Block:
		info, err := os.Stat(disk.Source)
		if err != nil || info.Mode()&os.ModeDevice == 0 {
			return prepared{}, fmt.Errorf("the pod has no block device %s", disk.Source)
		}
		return prepared{disk.Source, direct(disk.Source)}, nil
	}
	return prepared{}, fmt.Errorf("the launcher does not know disks of kind %q; use a launcher image of the agent's version", disk.Kind)
}

// direct tries whether a file can bypass the page cache. Not all file systems can.
func direct(path string) string {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return "off"
	}
	file.Close()
	return "on"
}

// makeOverlay makes a copy-on-write image over a source that stays as it is.
func (l *Launcher) makeOverlay(ctx context.Context, disk protocol.Disk, own string) error {
	source, err := onlyFile(disk.Source)
	if err != nil {
		return err
	}
	image, err := inspect(source, disk.SourceFormat)
	if err != nil {
		return err
	}
	size := max(image.size, disk.SizeBytes)
	// -u leaves the source unopened: inspect has said what qemu-img would look for.
	return l.qemuImg(ctx, "create", "-q", "-u", "-f", "qcow2", "-F", image.format, "-b", source, own, strconv.FormatInt(size, 10))
}

// onlyFile is the path itself, or the only file in the directory that it names.
func onlyFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("the image has no %s; a container disk holds its disk in the directory /disk", filepath.Base(path))
	}
	if !info.IsDir() {
		return path, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", err
	}
	found := ""
	for _, entry := range entries {
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("the image holds several files in /%s (%s, %s); name one by the volume's path", filepath.Base(path), found, entry.Name())
		}
		found = entry.Name()
	}
	if found == "" {
		return "", fmt.Errorf("the image holds no file in /%s", filepath.Base(path))
	}
	return filepath.Join(path, found), nil
}

// source is what a disk image says of itself.
type source struct {
	format string
	size   int64 // that the guest sees
}

// The parts of a qcow2 header (docs/interop/qcow2.txt in QEMU's source) that matter here.
const (
	qcow2Magic        = 0x514649fb
	qcow2Header       = 80
	qcow2ExternalData = 1 << 2 // incompatible feature
)

// inspect reads an image's format and size. It refuses images that name other files: what they name is the pod's, not the image's.
func inspect(path, format string) (source, error) {
	file, err := os.Open(path)
	if err != nil {
		return source{}, fmt.Errorf("the disk %s cannot be read by user %d; give it to that user in the image", filepath.Base(path), os.Getuid())
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return source{}, err
	}
	raw := source{"raw", (info.Size() + 511) / 512 * 512}
	if info.Mode()&os.ModeDevice != 0 {
		if raw.size, err = file.Seek(0, io.SeekEnd); err != nil {
			return source{}, err
		}
	}
	header := make([]byte, qcow2Header)
	n, err := io.ReadAtLeast(io.NewSectionReader(file, 0, qcow2Header), header, qcow2Header)
	if format == "raw" || (err != nil && n < 72) || binary.BigEndian.Uint32(header) != qcow2Magic {
		return raw, nil
	}
	if binary.BigEndian.Uint64(header[8:]) != 0 {
		return source{}, errors.New("the disk has a backing file; convert it with qemu-img convert -O qcow2")
	}
	if binary.BigEndian.Uint32(header[4:]) >= 3 && binary.BigEndian.Uint64(header[72:])&qcow2ExternalData != 0 {
		return source{}, errors.New("the disk keeps its data in another file; convert it with qemu-img convert -O qcow2")
	}
	return source{"qcow2", int64(binary.BigEndian.Uint64(header[24:]))}, nil
}

// findFile makes sure that a raw disk is there.
func findFile(disk protocol.Disk) error {
	info, err := os.Stat(disk.Source)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a directory; name the disk's file", disk.Source)
	case err == nil:
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	case !disk.Create:
		return fmt.Errorf("there is no file %s; make it, or set type: DiskOrCreate", disk.Source)
	}
	return createFile(disk)
}

// shortfall is by how much a volume may be smaller than its claim says, in percent: file systems keep some space for themselves.
const shortfall = 10

// createFile makes a sparse file. It shrinks to the free space when a little is missing, and fails when much is.
func createFile(disk protocol.Disk) error {
	if disk.SizeBytes <= 0 {
		return errors.New("a disk that is to be made needs a size")
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(disk.Source), &fs); err != nil {
		return fmt.Errorf("look for space for %s: %w", disk.Source, err)
	}
	size, free := disk.SizeBytes, int64(fs.Bavail)*fs.Bsize
	if free < size {
		if free < size/100*(100-shortfall) {
			return fmt.Errorf("the volume has %d bytes free, the disk needs %d; give the volume more", free, size)
		}
		size = free / 4096 * 4096
	}
	// Under another name first: a launcher killed in between must not leave a disk of the wrong size.
	partial := disk.Source + ".partial"
	file, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o660)
	if err != nil {
		return fmt.Errorf("user %d cannot make a file in the volume: %w", os.Getuid(), err)
	}
	err = errors.Join(file.Truncate(size), file.Close())
	if err == nil {
		err = os.Rename(partial, disk.Source)
	}
	if err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	return nil
}

// qemuImg runs qemu-img and returns what it complains about.
func (l *Launcher) qemuImg(ctx context.Context, args ...string) error {
	said, errorEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		errorEnd.Close()
		return err
	}
	defer null.Close()
	pid, ended, err := l.children.start(l.cfg.QEMUImg, args, []*os.File{null, errorEnd, errorEnd})
	errorEnd.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	words, _ := io.ReadAll(io.LimitReader(said, keepWords))
	status := <-ended
	if !stop() {
		return fmt.Errorf("qemu-img was interrupted: %w", ctx.Err())
	}
	if code := exitCode(status); code != 0 {
		return fmt.Errorf("qemu-img ended with %d: %s", code, strings.TrimSpace(string(words)))
	}
	return nil
}
