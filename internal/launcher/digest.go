package launcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"patchbay/internal/launcher/protocol"
)

// digests are the checksums of files that stay as they are as long as the pod lives. One at a time is computed.
type digests struct {
	mu sync.Mutex
	of map[string]string // by path
}

// digest answers with the checksums of overlays' sources.
func (l *Launcher) digest(ctx context.Context, sources []string) protocol.Response {
	response := l.now()
	for _, source := range sources {
		sum, err := l.digests.file(ctx, source)
		if err != nil {
			return l.fail(err.Error())
		}
		response.Digests = append(response.Digests, sum)
	}
	return response
}

func (d *digests) file(ctx context.Context, source string) (string, error) {
	path, err := onlyFile(source)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if sum, known := d.of[path]; known {
		return sum, nil
	}
	sum, err := checksum(ctx, path)
	if err != nil {
		return "", fmt.Errorf("read the disk %s: %w", filepath.Base(path), err)
	}
	if d.of == nil {
		d.of = map[string]string{}
	}
	d.of[path] = sum
	return sum, nil
}

// checksum reads a whole file, unless ctx ends before.
func checksum(ctx context.Context, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	stop := context.AfterFunc(ctx, func() { file.Close() })
	defer stop()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
