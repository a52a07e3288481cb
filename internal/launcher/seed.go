package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"patchbay/internal/launcher/iso"
	"patchbay/internal/launcher/protocol"
)

// maxDocument bounds one file of a seed in bytes; a Kubernetes Secret is no larger.
const maxDocument = 1 << 20

// writeSeed makes the cloud-init disk. It lies in memory with the sockets: it holds secrets.
func (l *Launcher) writeSeed(seed *protocol.Seed) (string, error) {
	content := seed.Image
	if content == nil {
		var err error
		if content, err = makeSeed(seed); err != nil {
			return "", err
		}
	}
	path := filepath.Join(l.cfg.RunDir, protocol.SeedName)
	if err := os.WriteFile(path+".staging", content, 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(path+".staging", path)
}

func makeSeed(seed *protocol.Seed) ([]byte, error) {
	files := maps.Clone(seed.Files)
	if files == nil {
		files = map[string][]byte{}
	}
	for path, candidates := range seed.FromDir {
		content, err := firstOf(candidates)
		if err != nil {
			return nil, err
		}
		files[path] = content
	}
	var image bytes.Buffer
	err := iso.Write(&image, seed.Label, files, time.Now())
	return image.Bytes(), err
}

// firstOf reads the first of the files that exists.
func firstOf(candidates []string) ([]byte, error) {
	for _, file := range candidates {
		info, err := os.Stat(file)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case info.Size() > maxDocument:
			return nil, fmt.Errorf("%s is larger than %d bytes", filepath.Base(file), maxDocument)
		}
		return os.ReadFile(file)
	}
	var keys []string
	for _, file := range candidates {
		keys = append(keys, filepath.Base(file))
	}
	return nil, fmt.Errorf("the secret has no key %s; add one", strings.Join(keys, " or "))
}
