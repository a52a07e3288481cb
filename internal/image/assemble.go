package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Config is how a container of the image starts.
type Config struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	Labels     map[string]string
}

// Assemble makes an image of one layer per tree. Layers stay uncompressed: images are made and loaded on the same host
// far more often than they travel, and disks inside them are compressed already.
func Assemble(config Config, layers ...*Tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, tree := range layers {
		layer, err := newTreeLayer(tree)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{
			Layer: layer, MediaType: types.OCIUncompressedLayer,
			History: v1.History{Created: v1.Time{Time: Epoch}, CreatedBy: "patchbay image build"},
		}); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Created = "amd64", "linux", v1.Time{Time: Epoch}
	file.Config = v1.Config{
		Entrypoint: config.Entrypoint, Cmd: config.Cmd, Env: config.Env,
		User: config.User, WorkingDir: config.WorkingDir, Labels: config.Labels,
	}
	return mutate.ConfigFile(img, file)
}

// treeLayer is a layer whose bytes are made anew from the tree on each reading.
type treeLayer struct {
	tree *Tree
	hash v1.Hash
	size int64
}

func newTreeLayer(tree *Tree) (*treeLayer, error) {
	sum, size := sha256.New(), counter{}
	if err := tree.WriteTar(io.MultiWriter(sum, &size)); err != nil {
		return nil, fmt.Errorf("make image layer: %w", err)
	}
	return &treeLayer{tree: tree, hash: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, size: size.n}, nil
}

func (l *treeLayer) Digest() (v1.Hash, error)            { return l.hash, nil }
func (l *treeLayer) DiffID() (v1.Hash, error)            { return l.hash, nil }
func (l *treeLayer) Size() (int64, error)                { return l.size, nil }
func (l *treeLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (l *treeLayer) Compressed() (io.ReadCloser, error)  { return l.Uncompressed() }
func (l *treeLayer) Uncompressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.tree.WriteTar(w)) }() // ends when the reader has all or closes
	return r, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Size is how many bytes an image's layers have in an archive.
func Size(img v1.Image) (int64, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	var total int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
