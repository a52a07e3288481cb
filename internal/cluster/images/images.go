// Package images brings image archives into the containerd of a node, and makes the image of a pod's sandbox. There is no
// registry: an image that a pod names must have been loaded.
package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// containerdNamespace is where the kubelet's images live.
	containerdNamespace = "k8s.io"
	snapshotter         = "overlayfs"
	// archiveLabel on an image holds the fingerprint of the archive it came from.
	archiveLabel = "patchbay.io/archive"
	// managedLabel tells containerd that an image is the kubelet's.
	managedLabel = "io.cri-containerd.image"
)

// Result tells what happened to one archive.
type Result struct {
	Archive string   `json:"archive"`
	Images  []string `json:"images"`
	Loaded  bool     `json:"loaded"` // false when the node had it already
}

// Load imports archives (docker save or OCI layout, as tar) into the containerd that listens on socket, at the same time, and skips
// those that it already has.
func Load(ctx context.Context, socket string, archives ...string) ([]Result, error) {
	client, err := containerd.New(socket)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, containerdNamespace)
	results, errs := make([]Result, len(archives)), make([]error, len(archives))
	var wg sync.WaitGroup
	for i, archive := range archives {
		wg.Go(func() {
			results[i], errs[i] = load(ctx, client, archive)
		})
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

func load(ctx context.Context, client *containerd.Client, archive string) (Result, error) {
	result := Result{Archive: archive}
	fingerprint, err := Fingerprint(archive)
	if err != nil {
		return result, err
	}
	present, err := client.ListImages(ctx, fmt.Sprintf("labels.%q==%s", archiveLabel, fingerprint))
	if err != nil {
		return result, fmt.Errorf("list images: %w", err)
	}
	if len(present) > 0 {
		for _, image := range present {
			result.Images = append(result.Images, image.Name())
		}
		return result, nil
	}
	file, err := os.Open(archive)
	if err != nil {
		return result, err
	}
	defer file.Close()
	imported, err := client.Import(ctx, file)
	if err != nil {
		return result, fmt.Errorf("load image archive %s: %w", archive, err)
	}
	for _, i := range imported {
		image := containerd.NewImage(client, i)
		if err := image.Unpack(ctx, snapshotter); err != nil {
			return result, fmt.Errorf("unpack %s of %s: %w", i.Name, archive, err)
		}
		config, err := image.Config(ctx)
		if err != nil {
			return result, fmt.Errorf("read the configuration of %s of %s: %w", i.Name, archive, err)
		}
		if err := ensureID(ctx, client.ImageService(), config.Digest, i.Target); err != nil {
			return result, fmt.Errorf("give %s its identifier: %w", i.Name, err)
		}
		// Marked last: an archive that was not unpacked to its end is loaded again.
		i.Labels = map[string]string{archiveLabel: fingerprint}
		if _, err := client.ImageService().Update(ctx, i, "labels."+archiveLabel); err != nil {
			return result, fmt.Errorf("mark image %s: %w", i.Name, err)
		}
		result.Images = append(result.Images, i.Name)
	}
	result.Loaded = true
	return result, nil
}

// ensureID keeps the name by which the kubelet mounts an image: the digest of its configuration. containerd 2.4 gives it to an image
// that is new, but not to one that takes over the name of an older image, and a pod of that name would not start.
func ensureID(ctx context.Context, store images.Store, id digest.Digest, target ocispec.Descriptor) error {
	image := images.Image{Name: id.String(), Target: target, Labels: map[string]string{managedLabel: "managed"}}
	_, err := store.Create(ctx, image)
	if errdefs.IsAlreadyExists(err) {
		_, err = store.Update(ctx, image, "target", "labels."+managedLabel)
	}
	return err
}

// Fingerprint identifies the content of an archive without reading all of it: the lists inside name every layer by its digest.
func Fingerprint(archive string) (string, error) {
	file, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash, found := sha256.New(), false
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("%s is not an image archive (tar): %w", archive, err)
		}
		switch strings.TrimPrefix(header.Name, "./") {
		case "index.json", "manifest.json":
			found = true
			if _, err := io.Copy(hash, reader); err != nil {
				return "", fmt.Errorf("read %s: %w", archive, err)
			}
		}
	}
	if !found {
		return "", fmt.Errorf("%s holds neither index.json nor manifest.json; make it with `docker save` or as an OCI layout", archive)
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}
