// Package hyperconverged keeps the two objects in which a cluster says how it runs virtual machines: HyperConverged, which an
// administrator writes, and KubeVirt, which follows from it and which clients and controllers read. What follows is a pure
// function; the package must not act on a setting itself.
package hyperconverged

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	virtv1 "kubevirt.io/api/core/v1"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/home"
)

const (
	// Version is the release whose API is served, the one of kubevirt.io/api in go.mod.
	Version = "v1.9.0"

	// Published defaults of live migration and of updates that need one.
	migrationsPerCluster = 5
	migrationsPerNode    = 1
	completionPerGiB     = 20  // seconds
	progressTimeout      = 150 // seconds
	updateBatch          = 10

	l2bridge = "l2bridge"
	passt    = "passt"
	// gatePasst allows the passt binding; it is on in published releases and off here until it is asked for.
	gatePasst = "PasstBinding"
)

// passtMemory is what passt takes in a machine's pod.
var passtMemory = resource.MustParse("250Mi")

// gates are those of HyperConverged that switch a gate of KubeVirt.
var gates = map[string]string{"decentralizedLiveMigration": "DecentralizedLiveMigration"}

// KubeVirtSpec is what follows from an object in a cluster of so many workers. A missing object has the empty spec.
func KubeVirtSpec(h *hcov1beta1.HyperConverged, workers int) virtv1.KubeVirtSpec {
	virtualization, networking := h.Spec.Settings()
	withPasst := h.Annotations[hcov1beta1.PasstAnnotation] == "true"
	rollout := virtv1.VMRolloutStrategyLiveUpdate
	return virtv1.KubeVirtSpec{
		WorkloadUpdateStrategy: workloadUpdates(virtualization),
		Configuration: virtv1.KubeVirtConfiguration{
			EvictionStrategy:        evictionStrategy(virtualization, workers),
			LiveUpdateConfiguration: virtualization.LiveUpdateConfiguration,
			VMRolloutStrategy:       &rollout,
			MigrationConfiguration:  migrations(virtualization.LiveMigrationConfig),
			DeveloperConfiguration:  developer(h.Spec.FeatureGates, withPasst),
			NetworkConfiguration: &virtv1.NetworkConfiguration{
				NetworkInterface: "masquerade",
				Binding:          bindings(networking.NetworkBinding, withPasst),
			},
		},
	}
}

func evictionStrategy(v hcov1beta1.VirtualizationSpec, workers int) *virtv1.EvictionStrategy {
	if v.EvictionStrategy != nil {
		return v.EvictionStrategy
	}
	strategy := virtv1.EvictionStrategyNone
	if workers > 1 {
		strategy = virtv1.EvictionStrategyLiveMigrate
	}
	return &strategy
}

func workloadUpdates(v hcov1beta1.VirtualizationSpec) virtv1.KubeVirtWorkloadUpdateStrategy {
	if v.WorkloadUpdateStrategy != nil {
		return *v.WorkloadUpdateStrategy
	}
	size := updateBatch
	return virtv1.KubeVirtWorkloadUpdateStrategy{
		WorkloadUpdateMethods: []virtv1.WorkloadUpdateMethod{virtv1.WorkloadUpdateMethodLiveMigrate}, BatchEvictionSize: &size,
	}
}

func migrations(c *hcov1beta1.LiveMigrationConfig) *virtv1.MigrationConfiguration {
	if c == nil {
		c = &hcov1beta1.LiveMigrationConfig{}
	}
	return &virtv1.MigrationConfiguration{
		ParallelMigrationsPerCluster:      or(c.ParallelMigrationsPerCluster, migrationsPerCluster),
		ParallelOutboundMigrationsPerNode: or(c.ParallelOutboundMigrationsPerNode, migrationsPerNode),
		CompletionTimeoutPerGiB:           or(c.CompletionTimeoutPerGiB, completionPerGiB),
		ProgressTimeout:                   or(c.ProgressTimeout, progressTimeout),
		BandwidthPerMigration:             c.BandwidthPerMigration,
		Network:                           c.Network,
		AllowAutoConverge:                 or(c.AllowAutoConverge, false),
		AllowPostCopy:                     or(c.AllowPostCopy, false),
		AllowWorkloadDisruption:           or(c.AllowWorkloadDisruption, false),
	}
}

func or[T any](chosen *T, otherwise T) *T {
	if chosen != nil {
		return chosen
	}
	return &otherwise
}

// developer lists every gate that is decided, in a stable order.
func developer(chosen hcov1beta1.FeatureGates, withPasst bool) *virtv1.DeveloperConfiguration {
	d := &virtv1.DeveloperConfiguration{}
	decide := func(gate string, on bool) {
		if on {
			d.FeatureGates = append(d.FeatureGates, gate)
		} else {
			d.DisabledFeatureGates = append(d.DisabledFeatureGates, gate)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		if on, named := chosen[name]; named {
			decide(gates[name], on)
		}
	}
	decide(gatePasst, withPasst)
	return d
}

// bindings are the registered plugins: the administrator's, and those that are always there.
func bindings(chosen map[string]virtv1.InterfaceBindingPlugin, withPasst bool) map[string]virtv1.InterfaceBindingPlugin {
	all := map[string]virtv1.InterfaceBindingPlugin{}
	maps.Copy(all, chosen)
	all[l2bridge] = virtv1.InterfaceBindingPlugin{DomainAttachmentType: virtv1.ManagedTap, Migration: &virtv1.InterfaceBindingMigration{}}
	if withPasst {
		all[passt] = virtv1.InterfaceBindingPlugin{
			Migration: &virtv1.InterfaceBindingMigration{},
			ComputeResourceOverhead: &virtv1.ResourceRequirementsWithoutClaims{
				Requests: corev1.ResourceList{corev1.ResourceMemory: passtMemory},
			},
		}
	}
	return all
}

// places are where HyperConverged may lie, the first that has one counts: where published documents put it before our own.
var places = []string{"openshift-cnv", "kubevirt-hyperconverged", home.Namespace}

// choose returns the object that counts, nil when there is none.
func choose(all []hcov1beta1.HyperConverged) *hcov1beta1.HyperConverged {
	var candidates []*hcov1beta1.HyperConverged
	for i := range all {
		if all[i].Name == hcov1beta1.Name && slices.Contains(places, all[i].Namespace) && all[i].DeletionTimestamp == nil {
			candidates = append(candidates, &all[i])
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	return slices.MinFunc(candidates, func(a, b *hcov1beta1.HyperConverged) int {
		return cmp.Compare(slices.Index(places, a.Namespace), slices.Index(places, b.Namespace))
	})
}
