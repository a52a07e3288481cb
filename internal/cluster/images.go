package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"patchbay/internal/cluster/images"
	"patchbay/internal/cluster/layout"
)

// LoadImages imports image archives into the nodes of a running cluster, all at the same time; without names, into every node. It
// returns what happened by the node's name.
func LoadImages(ctx context.Context, c layout.Cluster, nodes []string, archives ...string) (map[string][]images.Result, error) {
	spec, err := readSpec(c)
	if err != nil {
		return nil, err
	}
	chosen, err := chooseNodes(c, spec, nodes)
	if err != nil {
		return nil, err
	}
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		errs    []error
		results = make(map[string][]images.Result, len(chosen))
	)
	for _, node := range chosen {
		wg.Go(func() {
			loaded, err := images.Load(ctx, node.ContainerdSocket(), archives...)
			mu.Lock()
			defer mu.Unlock()
			results[node.Name] = loaded
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", node.Name, err))
			}
		})
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

func chooseNodes(c layout.Cluster, spec Spec, names []string) ([]layout.Node, error) {
	all := c.Nodes(spec.Nodes)
	if len(names) == 0 {
		return all, nil
	}
	var chosen []layout.Node
	for _, name := range names {
		i := slices.IndexFunc(all, func(n layout.Node) bool { return n.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("cluster %q has no node %q; its nodes are node-1 to node-%d", c.Name, name, spec.Nodes)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
