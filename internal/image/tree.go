package image

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Epoch is the modification time of every file in an image, so that the same files make the same image on any day.
var Epoch = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// Entry is one file, directory or symbolic link of a Tree.
type Entry struct {
	Path   string      // absolute, clean
	Mode   fs.FileMode // type and permission bits, including set-uid and sticky
	UID    int
	GID    int
	Link   string // target, when Mode is a symbolic link
	Source string // file on this host that holds the content; empty: Data
	Data   []byte
	Size   int64
}

// Open returns the content of a regular file.
func (e *Entry) Open() (io.ReadCloser, error) {
	if e.Source == "" {
		return io.NopCloser(bytes.NewReader(e.Data)), nil
	}
	return os.Open(e.Source)
}

// Tree is a file system in the making. The first error is kept and returned by Entries, so that callers may add many
// files and check once.
type Tree struct {
	entries map[string]*Entry
	err     error
}

// NewTree returns a tree that holds the root directory only.
func NewTree() *Tree {
	return &Tree{entries: map[string]*Entry{"/": {Path: "/", Mode: fs.ModeDir | 0o755}}}
}

// Dir adds a directory, with parents that belong to root; one that exists takes the new mode and owner.
func (t *Tree) Dir(name string, mode fs.FileMode, uid, gid int) {
	t.add(&Entry{Path: name, Mode: fs.ModeDir | mode, UID: uid, GID: gid})
}

// Bytes adds a regular file with the given content.
func (t *Tree) Bytes(name string, mode fs.FileMode, data []byte) {
	t.add(&Entry{Path: name, Mode: mode, Data: data, Size: int64(len(data))})
}

// Link adds a symbolic link.
func (t *Tree) Link(name, target string) {
	t.add(&Entry{Path: name, Mode: fs.ModeSymlink | 0o777, Link: target})
}

// Host adds the file, link or directory (without its content) that lies at source on this host. Owner is root.
func (t *Tree) Host(name, source string) {
	info, err := os.Lstat(source)
	if err != nil {
		t.fail(err)
		return
	}
	e := &Entry{Path: name, Mode: info.Mode() & (fs.ModeType | fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)}
	switch {
	case info.Mode().IsRegular():
		e.Source, e.Size = source, info.Size()
	case info.Mode()&fs.ModeSymlink != 0:
		if e.Link, err = os.Readlink(source); err != nil {
			t.fail(err)
			return
		}
	case info.IsDir():
	default:
		t.fail(fmt.Errorf("%s is a %s; only files, directories and links can go into an image", source, info.Mode().Type()))
		return
	}
	t.add(e)
}

// HostDir adds everything below the directory source of this host.
func (t *Tree) HostDir(name, source string) {
	t.fail(filepath.WalkDir(source, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		if rel != "." {
			t.Host(path.Join("/", name, rel), p)
		}
		return t.err
	}))
}

// Chown gives the file, and when it is a directory all below it, to an owner.
func (t *Tree) Chown(name string, uid, gid int) {
	name = clean(name)
	found := false
	for p, e := range t.entries {
		if p == name || strings.HasPrefix(p, strings.TrimSuffix(name, "/")+"/") {
			e.UID, e.GID, found = uid, gid, true
		}
	}
	if !found {
		t.fail(fmt.Errorf("change the owner of %s: the image has no such file", name))
	}
}

// Has tells whether a file, directory or link was added under this name.
func (t *Tree) Has(name string) bool {
	_, ok := t.entries[clean(name)]
	return ok
}

// Entries returns everything in the tree, parents before children, or the first error of an addition.
func (t *Tree) Entries() ([]*Entry, error) {
	if t.err != nil {
		return nil, t.err
	}
	return slices.SortedFunc(maps.Values(t.entries), func(a, b *Entry) int {
		return strings.Compare(sortKey(a.Path), sortKey(b.Path))
	}), nil
}

// sortKey makes "/a/b" come before "/a-b": a directory and all below it stay together.
func sortKey(p string) string { return strings.ReplaceAll(p, "/", "\x00") }

func (t *Tree) add(e *Entry) {
	e.Path = clean(e.Path)
	t.parents(e.Path)
	if old := t.entries[e.Path]; old != nil && old.Mode.IsDir() != e.Mode.IsDir() && e.Path != "/" {
		t.fail(fmt.Errorf("%s is a directory and a file at once; remove one of them", e.Path))
		return
	}
	t.entries[e.Path] = e
}

func (t *Tree) parents(p string) {
	for d := path.Dir(p); d != "/" && t.entries[d] == nil; d = path.Dir(d) {
		t.entries[d] = &Entry{Path: d, Mode: fs.ModeDir | 0o755}
	}
}

func (t *Tree) fail(err error) {
	if t.err == nil && err != nil {
		t.err = err
	}
}

func clean(p string) string { return path.Clean("/" + p) }
