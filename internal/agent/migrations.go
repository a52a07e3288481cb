package agent

import (
	"context"
	"fmt"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"patchbay/internal/agent/vmdriver"
)

// watched is a cache of its own that the manager starts with the others.
type watched struct{ cache.Cache }

// GetCache tells the manager what kind of runnable this is.
func (w watched) GetCache() cache.Cache { return w.Cache }

// arrivingMachines watches the instances that migrate to this node: a cache selects by one label, and they have another than those
// that are here.
func (h *Host) arrivingMachines() (cache.Cache, error) {
	c, err := cache.New(h.Manager.GetConfig(), cache.Options{
		Scheme: h.Manager.GetScheme(), Mapper: h.Manager.GetRESTMapper(), HTTPClient: h.Manager.GetHTTPClient(),
		DefaultTransform: cache.TransformStripManagedFields(), ByObject: vmdriver.ArrivingOptions(h.Node),
	})
	if err != nil {
		return nil, fmt.Errorf("watch arriving virtual machines: %w", err)
	}
	return c, h.Manager.Add(watched{c})
}

// addressLimit is how long the API server may take to tell this node's address.
const addressLimit = 5 * time.Second

// migrationAddress is where migrations come to: the node's own address, in the network that joins the nodes.
func (h *Host) migrationAddress() (vmdriver.MigrationAddress, error) {
	ctx, cancel := context.WithTimeout(context.Background(), addressLimit)
	defer cancel()
	address, err := h.address(ctx)
	return vmdriver.MigrationAddress{Address: address, Network: virtv1.Pod}, err
}
