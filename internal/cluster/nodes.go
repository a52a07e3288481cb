package cluster

import "patchbay/internal/cluster/layout"

// Nodes lists the nodes of a cluster, running or not.
func Nodes(c layout.Cluster) ([]layout.Node, error) {
	spec, err := readSpec(c)
	if err != nil {
		return nil, err
	}
	return c.Nodes(spec.Nodes), nil
}
