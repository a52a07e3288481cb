package vmdriver

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"patchbay/internal/qemu"
)

// digestLimit is how long reading the images of a guest's disks may take. Copying them to the other node takes longer.
const digestLimit = 20 * time.Second

// digest begins to compute the checksums of what disks lie over, by block node. What cannot be told is left out: those disks are copied whole.
func (d *domain) digest(ctx context.Context, log *slog.Logger, disks []qemu.LocalDisk) <-chan map[string]string {
	var nodes, bases []string
	for _, disk := range disks {
		if disk.Base != "" {
			nodes, bases = append(nodes, disk.Node), append(bases, disk.Base)
		}
	}
	done := make(chan map[string]string, 1)
	if len(bases) == 0 {
		done <- nil
		return done
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, digestLimit)
		defer cancel()
		sums, err := d.dir.Digest(ctx, bases)
		if err != nil {
			log.Info("disks are copied whole: what they lie over cannot be compared", "error", err)
			done <- nil
			return
		}
		byNode := map[string]string{}
		for i, sum := range sums {
			byNode[nodes[i]] = sum
		}
		done <- byNode
	}()
	return done
}

// sameBases are the block nodes that lie over the same content on both nodes.
func sameBases(source, target map[string]string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(source)), func(node string) bool {
		return source[node] == "" || source[node] != target[node]
	})
}
