package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// DiskOwner is the user and group of a disk in an image: QEMU runs as 107 in a virtual machine's pod, as in KubeVirt.
const DiskOwner = 107

// FromPath puts into a tree what a user wants in an image: a directory becomes the image's root; a disk becomes a
// containerDisk, the one file in /disk.
func FromPath(source string) (*Tree, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	tree := NewTree()
	if info.IsDir() {
		tree.HostDir("/", source)
		if tree.Has("/disk") {
			tree.Chown("/disk", DiskOwner, DiskOwner)
		}
		return tree, nil
	}
	if err := checkDisk(source); err != nil {
		return nil, err
	}
	tree.Host(path.Join("/disk", filepath.Base(source)), source)
	tree.Chown("/disk", DiskOwner, DiskOwner)
	return tree, nil
}

// rawDisks are the names by which a file without a header of its own is known to be a disk.
var rawDisks = []string{".img", ".raw", ".iso"}

// checkDisk refuses a file that QEMU could not start from.
func checkDisk(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	header := make([]byte, 104)
	n, err := io.ReadFull(f, header)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if bytes.HasPrefix(header[:n], []byte("QFI\xfb")) {
		return checkQcow2(file, header[:n])
	}
	if slices.Contains(rawDisks, filepath.Ext(file)) {
		return nil
	}
	return fmt.Errorf("%s is neither qcow2 nor named .img, .raw or .iso; a containerDisk holds one of these", file)
}

// checkQcow2 refuses a disk that needs another file: only this one goes into the image.
func checkQcow2(file string, header []byte) error {
	if len(header) >= 16 && !bytes.Equal(header[8:16], make([]byte, 8)) {
		return fmt.Errorf("%s has a backing file, which the image would lack; merge them with `qemu-img convert -O qcow2 %s NEW.qcow2`", file, file)
	}
	return nil
}
