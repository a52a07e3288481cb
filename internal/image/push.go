package image

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Pushed tells where an image went.
type Pushed struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// Push uploads an image to the registry that its name begins with, with the credentials of the user's docker configuration.
// plain allows HTTP. progress, when set, is told the bytes sent and in all.
func Push(ctx context.Context, image Named, plain bool, progress func(done, total int64)) (Pushed, error) {
	options := []name.Option{name.WeakValidation}
	if plain {
		options = append(options, name.Insecure)
	}
	tag, err := name.NewTag(image.Name, options...)
	if err != nil {
		return Pushed{}, err
	}
	digest, err := image.Image.Digest()
	if err != nil {
		return Pushed{}, err
	}
	updates := make(chan v1.Update, 64)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		for u := range updates { // closed by remote.Write
			if progress != nil && u.Error == nil {
				progress(u.Complete, u.Total)
			}
		}
	}()
	err = remote.Write(tag, image.Image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithProgress(updates))
	<-reported
	if err != nil {
		return Pushed{}, fmt.Errorf("push %s: %w", image.Name, err)
	}
	return Pushed{Name: image.Name, Digest: digest.String()}, nil
}
