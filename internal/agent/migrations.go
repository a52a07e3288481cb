package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/agent/migrationnet"
	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/home"
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

// published is where published documents put the network of migrations.
const published = "openshift-cnv"

// migrationNetwork is this node's way to others for migrations.
func (h *Host) migrationNetwork(log *slog.Logger) (*migrationnet.Network, error) {
	read := h.Manager.GetAPIReader()
	n := migrationnet.New(migrationnet.Config{
		Node: h.Node, NodeAddress: h.address, Definition: definitions{read}.Definition, Log: log,
		Main: slices.Concat(h.Settings.ClusterCIDRs, h.Settings.ServiceCIDRs),
		Wanted: func(ctx context.Context) (string, []string, error) {
			kv := &virtv1.KubeVirt{}
			err := read.Get(ctx, home.KubeVirt, kv)
			homes := []string{published, home.Namespace}
			if home := kv.Annotations[hcov1beta1.SourceAnnotation]; home != "" && !slices.Contains(homes, home) {
				homes = append(homes, home)
			}
			if m := kv.Spec.Configuration.MigrationConfiguration; err == nil && m != nil && m.Network != nil {
				return *m.Network, homes, nil
			}
			return "", nil, client.IgnoreNotFound(err)
		},
		Delegates: h.delegates("migration-network"),
	})
	return n, migrationnet.NewReporter(n, h.Manager.GetClient()).AddToManager(h.Manager)
}
