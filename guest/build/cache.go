package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sources are the files and directories that a target's image depends on, from the repository's root.
var sources = map[string][]string{
	"launcher":    {"guest/build", "guest/launcher", "internal/image", "internal/launcher/userfault", "bin/patchbay-launcher", "/var/lib/dpkg/status"},
	"tiny":        {"guest/build", "guest/tiny", "guest/initrd", "guest/guestd", "internal/image"},
	"tiny-kernel": {"guest/build", "guest/tiny", "guest/initrd", "guest/guestd", "internal/image"},
	"toolbox":     {"guest/build", "guest/toolbox", "guest/tiny/packages.txt", "guest/guestd", "internal/image"},
	"debian":      {"guest/build", "guest/debian", "guest/initrd", "guest/guestd", "internal/image"},
}

// inputs is a digest of everything that a target is made of.
func (b builder) inputs(target string) (string, error) {
	sum := sha256.New()
	for _, source := range sources[target] {
		err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(p, "_test.go") || strings.Contains(p, "/testdata/") {
				return err
			}
			data, err := os.ReadFile(p)
			fmt.Fprintf(sum, "%s %x\n", p, sha256.Sum256(data))
			return err
		})
		if err != nil {
			return "", fmt.Errorf("an input is missing: %w", err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (b builder) stamp(target string) string {
	return filepath.Join(b.out, "images", target+".inputs")
}

// fresh tells whether the image exists and was made of these inputs.
func (b builder) fresh(target, inputs string) bool {
	data, err := os.ReadFile(b.stamp(target))
	if err != nil {
		return false
	}
	want, err := b.mark(target, inputs)
	return err == nil && string(data) == want
}

// mark is what the stamp of a finished image says: its inputs, and which file was made of them.
func (b builder) mark(target, inputs string) (string, error) {
	info, err := os.Stat(b.archive(target))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %d\n", inputs, info.Size(), info.ModTime().UnixNano()), nil
}

// finish writes the stamp. It replaces the file: a build directory may be a copy that shares files with another.
func (b builder) finish(target, inputs string) error {
	mark, err := b.mark(target, inputs)
	if err != nil {
		return err
	}
	temp := b.stamp(target) + ".new"
	return errors.Join(os.WriteFile(temp, []byte(mark), 0o644), os.Rename(temp, b.stamp(target)))
}

// packages unpacks Debian packages, with those that they depend on, into a directory that is kept until the list changes.
func (b builder) packages(name string, wanted []string) (string, error) {
	key := sha256.Sum256([]byte(strings.Join(wanted, "\n")))
	dir, err := filepath.Abs(filepath.Join(b.out, "packages", name+"-"+hex.EncodeToString(key[:6])))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	old, err := filepath.Glob(filepath.Join(filepath.Dir(dir), name+"-*"))
	if err != nil {
		return "", err
	}
	for _, d := range old {
		if err := os.RemoveAll(d); err != nil {
			return "", err
		}
	}
	temp := dir + ".part"
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	if _, err := run("mmdebstrap", "--variant=extract", "--mode=root", "--include="+strings.Join(wanted, ","), "bookworm", temp); err != nil {
		return "", err
	}
	return dir, os.Rename(temp, dir)
}
