package image

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// WriteCpio writes the tree as a cpio archive in the "newc" form, which the Linux kernel unpacks as its first file system.
func (t *Tree) WriteCpio(w io.Writer) error {
	entries, err := t.Entries()
	if err != nil {
		return err
	}
	out := &cpioWriter{w: bufio.NewWriterSize(w, 1<<20)}
	for i, e := range entries {
		if e.Path == "/" {
			continue
		}
		if err := out.entry(uint32(i), e); err != nil {
			return fmt.Errorf("cpio %s: %w", e.Path, err)
		}
	}
	if err := out.header(0, "TRAILER!!!", 0, 0, 0, 1, 0); err != nil {
		return err
	}
	return out.w.Flush()
}

type cpioWriter struct {
	w *bufio.Writer
	n int64
}

func (c *cpioWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *cpioWriter) entry(inode uint32, e *Entry) error {
	name, links := strings.TrimPrefix(e.Path, "/"), uint32(1)
	if e.Mode.IsDir() {
		links = 2
	}
	size := e.Size
	if e.Link != "" {
		size = int64(len(e.Link))
	}
	if err := c.header(inode, name, unixMode(e.Mode), e.UID, e.GID, links, size); err != nil {
		return err
	}
	if e.Link != "" {
		if _, err := io.WriteString(c, e.Link); err != nil {
			return err
		}
	} else if e.Mode.IsRegular() {
		if err := copyContent(c, e); err != nil {
			return err
		}
	}
	return c.pad()
}

func (c *cpioWriter) header(inode uint32, name string, mode uint32, uid, gid int, links uint32, size int64) error {
	_, err := fmt.Fprintf(c, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, mode, uid, gid, links, Epoch.Unix(), size, 0, 0, 0, 0, len(name)+1, 0, name)
	if err != nil {
		return err
	}
	return c.pad()
}

// pad fills up to a multiple of four bytes.
func (c *cpioWriter) pad() error {
	_, err := c.Write(make([]byte, (4-c.n%4)%4))
	return err
}

// copyContent writes exactly as many bytes as the entry's size promises.
func copyContent(w io.Writer, e *Entry) error {
	in, err := e.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.CopyN(w, in, e.Size)
	return err
}

// unixMode is the mode as the kernel writes it.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		unix uint32
	}{
		{fs.ModeDir, 0o040000}, {fs.ModeSymlink, 0o120000}, {fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000},
	} {
		if m&b.mode != 0 {
			u |= b.unix
		}
	}
	if m.IsRegular() {
		u |= 0o100000
	}
	return u
}
