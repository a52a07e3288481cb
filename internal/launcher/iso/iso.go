// Package iso writes small ISO 9660 images with Rock Ridge and Joliet names, as guests read them for cloud-init. Everything is held
// in memory; an image has few files and little content.
//
// It exists because the Go libraries cannot: kdomanski/iso9660 v0.4.0 writes neither names, diskfs/go-diskfs v1.9.4 garbles the Joliet
// names of nested directories (openstack/latest), which Windows reads, and needs a scratch directory.
package iso

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	sector = 2048
	// maxName is the longest file name: what fits a directory record beside Rock Ridge's other fields, and Joliet's limit.
	maxName = 64
	// maxLabel is the longest volume label: Joliet holds 16 characters.
	maxLabel = 16
)

// Write writes an image. files maps a slash-separated path to content; modified is the time of everything in it.
func Write(w io.Writer, label string, files map[string][]byte, modified time.Time) error {
	if label == "" || len(label) > maxLabel {
		return fmt.Errorf("volume label %q must have 1 to %d characters", label, maxLabel)
	}
	root, err := tree(files)
	if err != nil {
		return err
	}
	image := newImage(label, root, modified.UTC())
	_, err = w.Write(image.bytes())
	return err
}

// node is a file or directory.
type node struct {
	name     string // empty for the root
	parent   *node  // itself for the root
	children []*node
	dir      bool
	content  []byte

	short  string // the name without extensions
	extent uint32 // sector of a file
	// place are the sector and size of a directory in the primary and in the Joliet tree.
	place [2]place
	// number is the directory's in the path tables.
	number uint16
}

type place struct{ extent, size uint32 }

// tree makes nodes of paths.
func tree(files map[string][]byte) (*node, error) {
	root := &node{dir: true}
	root.parent = root
	paths := make([]string, 0, len(files))
	for p := range files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		if p == "" || path.Clean("/"+p) != "/"+p {
			return nil, fmt.Errorf("%q is not a path in an image", p)
		}
		at := root
		parts := strings.Split(p, "/")
		for i, name := range parts {
			child, err := at.child(name, i < len(parts)-1)
			if err != nil {
				return nil, fmt.Errorf("path %q: %w", p, err)
			}
			at = child
		}
		at.content = files[p]
	}
	return root, nil
}

// child finds or makes a child.
func (n *node) child(name string, dir bool) (*node, error) {
	if len(name) > maxName {
		return nil, fmt.Errorf("name %q is longer than %d bytes", name, maxName)
	}
	for _, c := range n.children {
		if c.name == name {
			if !c.dir || !dir {
				return nil, errors.New("a file cannot be a directory too")
			}
			return c, nil
		}
	}
	c := &node{name: name, parent: n, dir: dir}
	c.short = n.unique(shorten(name, dir))
	n.children = append(n.children, c)
	return c, nil
}

// unique is the name with a number in place of its end when a sibling has it.
func (n *node) unique(short string) string {
	stem, rest := short, ""
	if i := strings.IndexByte(short, '.'); i >= 0 {
		stem, rest = short[:i], short[i:]
	}
	try := short
	for i := 0; slices.ContainsFunc(n.children, func(c *node) bool { return c.short == try }); i++ {
		number := fmt.Sprintf("%03d", i)
		try = stem[:min(len(stem), 8-len(number))] + number + rest
	}
	return try
}

// shorten is the name as the bare format allows it: eight and three upper-case letters, digits and underscores.
func shorten(name string, dir bool) string {
	clean := func(s string, length int) string {
		s = strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z':
				return r - 'a' + 'A'
			case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
				return r
			}
			return '_'
		}, s)
		return s[:min(len(s), length)]
	}
	if dir {
		return clean(name, 8)
	}
	stem, extension := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		stem, extension = name[:i], name[i+1:]
	}
	return clean(stem, 8) + "." + clean(extension, 3) + ";1"
}

// directories lists the directories, parents before children and level by level, as path tables want them.
func (n *node) directories() []*node {
	list := []*node{n}
	for i := 0; i < len(list); i++ {
		for _, c := range list[i].children {
			if c.dir {
				list = append(list, c)
			}
		}
	}
	return list
}
