package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// SandboxName is the image that holds a pod's namespaces.
const SandboxName = "patchbay.io/pause:1"

// WriteSandbox writes the archive of the sandbox image, which holds nothing but one static program.
func WriteSandbox(program, archive string) error {
	image, err := sandbox(program)
	if err != nil {
		return fmt.Errorf("make the sandbox image: %w", err)
	}
	tag, err := name.NewTag(SandboxName)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return err
	}
	if err := tarball.WriteToFile(archive+".new", tag, image); err != nil {
		return fmt.Errorf("write %s: %w", archive, err)
	}
	return os.Rename(archive+".new", archive)
}

func sandbox(program string) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "pause", Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	content, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	base, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux"})
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(base, content)
	if err != nil {
		return nil, err
	}
	return mutate.Config(image, v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"})
}
