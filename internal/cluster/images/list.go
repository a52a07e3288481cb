package images

import (
	"context"
	"fmt"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Image is an image that a node has.
type Image struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // bytes of its layers, as stored
}

// List returns the images of the node whose containerd listens on socket, without the second names that the kubelet keeps
// for each (its digest, and its configuration's).
func List(ctx context.Context, socket string) ([]Image, error) {
	client, err := containerd.New(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, containerdNamespace)
	all, err := client.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Image
	for _, image := range all {
		if strings.HasPrefix(image.Name(), "sha256:") || strings.Contains(image.Name(), "@") {
			continue
		}
		size, err := image.Size(ctx)
		if err != nil {
			return nil, fmt.Errorf("size of image %s: %w", image.Name(), err)
		}
		out = append(out, Image{Name: image.Name(), Digest: image.Target().Digest.String(), Size: size})
	}
	return out, nil
}
