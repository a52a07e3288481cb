package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations by which an archive's index names its images: the first is what containerd stores the image under, the
// second what OCI tools show.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// Named is an image and the full name that it goes by ("patchbay.io/guest/tiny:latest").
type Named struct {
	Name  string
	Image v1.Image
}

// ParseName checks an image name and completes it: a missing tag is "latest", a missing registry Docker's, as everywhere.
func ParseName(s string) (string, error) {
	tag, err := name.NewTag(s)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w; write it like patchbay.io/guest/mine:latest", s, err)
	}
	if tag.RegistryStr() == name.DefaultRegistry { // containerd and Kubernetes say docker.io
		return "docker.io/" + tag.RepositoryStr() + ":" + tag.TagStr(), nil
	}
	return tag.Name(), nil
}

// WriteArchive writes one image to a tar file that containerd, docker and podman import: an OCI layout with docker's
// manifest.json beside it. The file appears under its name only when it is complete. progress, when set, is told every number of bytes written.
func WriteArchive(path string, image Named, progress func(n int)) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := writeArchive(io.MultiWriter(temp, progressWriter(progress)), image); err != nil {
		return fmt.Errorf("write image archive %s: %w", path, err)
	}
	if err := errors.Join(temp.Chmod(0o644), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

type progressWriter func(n int)

func (p progressWriter) Write(b []byte) (int, error) {
	if p != nil {
		p(len(b))
	}
	return len(b), nil
}

// dockerManifest is one entry of manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func writeArchive(w io.Writer, image Named) error {
	config, err := image.Image.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := image.Image.RawManifest()
	if err != nil {
		return err
	}
	index, docker, err := archiveIndexes(image)
	if err != nil {
		return err
	}
	out := &archiveWriter{tar: tar.NewWriter(w), written: map[v1.Hash]bool{}}
	out.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	out.file("index.json", index)
	out.file("manifest.json", docker)
	out.blob(config)
	out.blob(manifest)
	layers, err := image.Image.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		out.layer(l)
	}
	return errors.Join(out.err, out.tar.Close())
}

// archiveIndexes makes index.json and manifest.json.
func archiveIndexes(image Named) (index, docker []byte, err error) {
	digest, err := image.Image.Digest()
	if err != nil {
		return nil, nil, err
	}
	size, err := image.Image.Size()
	if err != nil {
		return nil, nil, err
	}
	manifest, err := image.Image.Manifest()
	if err != nil {
		return nil, nil, err
	}
	d := dockerManifest{Config: blobPath(manifest.Config.Digest), RepoTags: []string{image.Name}}
	for _, l := range manifest.Layers {
		d.Layers = append(d.Layers, blobPath(l.Digest))
	}
	index, err = json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Size: size, Digest: digest,
			Platform:    &v1.Platform{OS: "linux", Architecture: "amd64"},
			Annotations: map[string]string{containerdName: image.Name, ociRefName: image.Name},
		}},
	})
	if err != nil {
		return nil, nil, err
	}
	docker, err = json.Marshal([]dockerManifest{d})
	return index, docker, err
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// archiveWriter keeps the first error.
type archiveWriter struct {
	tar     *tar.Writer
	written map[v1.Hash]bool
	err     error
}

func (a *archiveWriter) file(name string, data []byte) {
	a.stream(name, int64(len(data)), bytes.NewReader(data))
}

func (a *archiveWriter) blob(data []byte) {
	hash, size, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.stream(blobPath(hash), size, bytes.NewReader(data))
}

func (a *archiveWriter) layer(l v1.Layer) {
	hash, err1 := l.Digest()
	size, err2 := l.Size()
	if a.written[hash] {
		return
	}
	a.written[hash] = true
	content, err3 := l.Compressed()
	if err := errors.Join(err1, err2, err3); err != nil {
		a.err = errors.Join(a.err, err)
		return
	}
	a.stream(blobPath(hash), size, content)
	a.err = errors.Join(a.err, content.Close())
}

func (a *archiveWriter) stream(name string, size int64, content io.Reader) {
	if a.err != nil {
		return
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: Epoch}
	if a.err = a.tar.WriteHeader(header); a.err == nil {
		_, a.err = io.Copy(a.tar, content)
	}
}

// ReadArchive returns the images of an archive that WriteArchive or "docker save" wrote. It unpacks into the directory
// scratch, which must outlive the images.
func ReadArchive(path, scratch string) ([]Named, error) {
	if err := unpack(path, scratch); err != nil {
		return nil, fmt.Errorf("read image archive %s: %w", path, err)
	}
	index, err := layout.ImageIndexFromPath(scratch)
	if errors.Is(err, os.ErrNotExist) {
		return readDockerArchive(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read image archive %s: %w", path, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var images []Named
	for _, d := range manifest.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		images = append(images, Named{Name: firstSet(d.Annotations[containerdName], d.Annotations[ociRefName]), Image: img})
	}
	return images, nil
}

func readDockerArchive(path string) ([]Named, error) {
	open := func() (io.ReadCloser, error) { return os.Open(path) }
	manifest, err := tarball.LoadManifest(open)
	if err != nil {
		return nil, fmt.Errorf("%s is neither an OCI nor a docker image archive: %w", path, err)
	}
	var images []Named
	for _, d := range manifest {
		for _, ref := range d.RepoTags {
			tag, err := name.NewTag(ref)
			if err != nil {
				return nil, err
			}
			img, err := tarball.Image(open, &tag)
			if err != nil {
				return nil, err
			}
			images = append(images, Named{Name: ref, Image: img})
		}
	}
	return images, nil
}

func firstSet(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// unpack extracts the plain files of a tar into a directory; names that would lead out of it are refused by os.Root.
func unpack(path, dir string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for files := tar.NewReader(in); ; {
		header, err := files.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := unpackFile(root, header.Name, files); err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, content io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	return errors.Join(err, out.Close())
}
