package images

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// names is containerd's list of images, as far as ensureID uses it.
type names struct {
	images.Store
	targets map[string]digest.Digest
}

func (n names) Create(_ context.Context, i images.Image) (images.Image, error) {
	if _, known := n.targets[i.Name]; known {
		return i, errdefs.ErrAlreadyExists
	}
	return n.Update(context.Background(), i)
}

func (n names) Update(_ context.Context, i images.Image, _ ...string) (images.Image, error) {
	n.targets[i.Name] = i.Target.Digest
	return i, nil
}

func TestAnImageIsKnownByTheDigestOfItsConfiguration(t *testing.T) {
	config, first, second := digest.FromString("config"), digest.FromString("first"), digest.FromString("second")
	store := names{targets: map[string]digest.Digest{}}
	for _, manifest := range []digest.Digest{first, second, second} {
		if err := ensureID(t.Context(), store, config, ocispec.Descriptor{Digest: manifest}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]digest.Digest{config.String(): manifest}, store.targets); diff != "" {
			t.Errorf("names after loading %s (-want +got):\n%s", manifest, diff)
		}
	}
}
