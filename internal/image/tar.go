package image

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
)

// WriteTar writes the tree as an image layer.
func (t *Tree) WriteTar(w io.Writer) error {
	entries, err := t.Entries()
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, e := range entries {
		if e.Path == "/" {
			continue
		}
		if err := tarEntry(out, e); err != nil {
			return fmt.Errorf("layer entry %s: %w", e.Path, err)
		}
	}
	return out.Close()
}

func tarEntry(out *tar.Writer, e *Entry) error {
	header := &tar.Header{
		Name: strings.TrimPrefix(e.Path, "/"), Mode: int64(unixMode(e.Mode) & 0o7777),
		Uid: e.UID, Gid: e.GID, ModTime: Epoch,
	}
	switch {
	case e.Link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, e.Link
	case e.Mode.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	default:
		header.Typeflag, header.Size = tar.TypeReg, e.Size
	}
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	return copyContent(out, e)
}
