// Package v1beta1 holds the HyperConverged kind of hco.kubevirt.io, in which an administrator says how virtual machines are run
// in the cluster. Both served versions, v1beta1 and v1, take both published layouts: v1beta1's, with everything below spec, and
// v1's, with sections. So an object needs no conversion, and a manifest works under either version. Where a setting is given in
// both layouts, v1's counts (Settings).
//
// +groupName=hco.kubevirt.io
// +kubebuilder:object:generate=true
package v1beta1

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	virtv1 "kubevirt.io/api/core/v1"
)

//go:generate go tool -modfile=../../../tools/go.mod controller-gen object paths=.

// GroupVersion is what clients of this package use.
var GroupVersion = schema.GroupVersion{Group: "hco.kubevirt.io", Version: "v1beta1"}

// AddToScheme makes the kind known to a client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &HyperConverged{}, &HyperConvergedList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

const (
	// Name is what the only object is called.
	Name = "kubevirt-hyperconverged"
	// PasstAnnotation set to "true" allows the passt binding.
	PasstAnnotation = "hco.kubevirt.io/deployPasstNetworkBinding"
)

// HyperConverged says how virtual machines are run in the cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'kubevirt-hyperconverged'",message="the HyperConverged object must be called kubevirt-hyperconverged"
type HyperConverged struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec Spec `json:"spec,omitempty"`
	// +optional
	Status Status `json:"status,omitempty"`
}

// HyperConvergedList is a list of them.
//
// +kubebuilder:object:root=true
type HyperConvergedList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []HyperConverged `json:"items"`
}

// Spec holds both layouts.
type Spec struct {
	VirtualizationSpec `json:",inline"`
	NetworkingSpec     `json:",inline"`

	// FeatureGates switch features, as an object of name and boolean or as a list of name and state.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	FeatureGates FeatureGates `json:"featureGates,omitempty"`

	// Virtualization is v1's section about machines and their migration.
	// +optional
	Virtualization *VirtualizationSpec `json:"virtualization,omitempty"`
	// Networking is v1's section about machines' networks.
	// +optional
	Networking *NetworkingSpec `json:"networking,omitempty"`
	// Deployment is v1's section about what is installed.
	// +optional
	Deployment *DeploymentSpec `json:"deployment,omitempty"`
}

// VirtualizationSpec says how machines run and move.
type VirtualizationSpec struct {
	// LiveMigrationConfig limits and routes live migrations.
	// +optional
	LiveMigrationConfig *LiveMigrationConfig `json:"liveMigrationConfig,omitempty"`
	// EvictionStrategy is what happens to machines that do not say so themselves when their node is emptied.
	// +optional
	// +kubebuilder:validation:Enum=None;LiveMigrate;LiveMigrateIfPossible;External
	EvictionStrategy *virtv1.EvictionStrategy `json:"evictionStrategy,omitempty"`
	// WorkloadUpdateStrategy says how running machines take up changes that need a new pod.
	// +optional
	WorkloadUpdateStrategy *virtv1.KubeVirtWorkloadUpdateStrategy `json:"workloadUpdateStrategy,omitempty"`
	// LiveUpdateConfiguration limits how far running machines grow.
	// +optional
	LiveUpdateConfiguration *virtv1.LiveUpdateConfiguration `json:"liveUpdateConfiguration,omitempty"`
}

// LiveMigrationConfig limits and routes live migrations. Unset fields have the published defaults.
type LiveMigrationConfig struct {
	// +optional
	ParallelMigrationsPerCluster *uint32 `json:"parallelMigrationsPerCluster,omitempty"`
	// +optional
	ParallelOutboundMigrationsPerNode *uint32 `json:"parallelOutboundMigrationsPerNode,omitempty"`
	// BandwidthPerMigration is a quantity of bytes per second.
	// +optional
	BandwidthPerMigration *resource.Quantity `json:"bandwidthPerMigration,omitempty"`
	// CompletionTimeoutPerGiB is the time for each GiB of memory, in seconds.
	// +optional
	CompletionTimeoutPerGiB *int64 `json:"completionTimeoutPerGiB,omitempty"`
	// ProgressTimeout is how long a migration may stand still, in seconds.
	// +optional
	ProgressTimeout *int64 `json:"progressTimeout,omitempty"`
	// Network is the name of a network attachment definition in the object's namespace that migrations go through.
	// +optional
	Network *string `json:"network,omitempty"`
	// +optional
	AllowAutoConverge *bool `json:"allowAutoConverge,omitempty"`
	// +optional
	AllowPostCopy *bool `json:"allowPostCopy,omitempty"`
	// +optional
	AllowWorkloadDisruption *bool `json:"allowWorkloadDisruption,omitempty"`
}

// NetworkingSpec says how machines' NICs are connected and addressed.
type NetworkingSpec struct {
	// KubeMacPoolConfiguration is the range that NICs get their MAC addresses from.
	// +optional
	KubeMacPoolConfiguration *KubeMacPoolConfiguration `json:"kubeMacPoolConfiguration,omitempty"`
	// NetworkBinding registers binding plugins by name.
	// +optional
	NetworkBinding map[string]virtv1.InterfaceBindingPlugin `json:"networkBinding,omitempty"`
	// KubeSecondaryDNSNameServerIP is the address that secondary networks' DNS answers from.
	// +optional
	KubeSecondaryDNSNameServerIP *string `json:"kubeSecondaryDNSNameServerIP,omitempty"`
}

// KubeMacPoolConfiguration is a range of MAC addresses.
//
// +kubebuilder:validation:XValidation:rule="has(self.rangeStart) == has(self.rangeEnd)",message="rangeStart and rangeEnd must be set both or none"
type KubeMacPoolConfiguration struct {
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$`
	RangeStart *string `json:"rangeStart,omitempty"`
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$`
	RangeEnd *string `json:"rangeEnd,omitempty"`
}

// DeploymentSpec says what is installed.
type DeploymentSpec struct {
	// +optional
	DeployNetworkResourcesInjector *bool `json:"deployNetworkResourcesInjector,omitempty"`
}

// Status is what the controller observed.
type Status struct {
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// FeatureGates are the gates that are named, by name.
type FeatureGates map[string]bool

// UnmarshalJSON reads v1beta1's object and v1's list.
func (g *FeatureGates) UnmarshalJSON(data []byte) error {
	var byName map[string]bool
	if json.Unmarshal(data, &byName) == nil {
		*g = byName
		return nil
	}
	var list []struct{ Name, State string }
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("featureGates is neither an object of name and boolean nor a list of name and state: %w", err)
	}
	*g = FeatureGates{}
	for _, gate := range list {
		(*g)[gate.Name] = gate.State == "Enabled"
	}
	return nil
}

// Settings are the settings of an object, whichever layout they are in.
func (s Spec) Settings() (VirtualizationSpec, NetworkingSpec) {
	v, n := s.VirtualizationSpec, s.NetworkingSpec
	if o := s.Virtualization; o != nil {
		v.LiveMigrationConfig = pick(o.LiveMigrationConfig, v.LiveMigrationConfig)
		v.EvictionStrategy = pick(o.EvictionStrategy, v.EvictionStrategy)
		v.WorkloadUpdateStrategy = pick(o.WorkloadUpdateStrategy, v.WorkloadUpdateStrategy)
		v.LiveUpdateConfiguration = pick(o.LiveUpdateConfiguration, v.LiveUpdateConfiguration)
	}
	if o := s.Networking; o != nil {
		n.KubeMacPoolConfiguration = pick(o.KubeMacPoolConfiguration, n.KubeMacPoolConfiguration)
		n.KubeSecondaryDNSNameServerIP = pick(o.KubeSecondaryDNSNameServerIP, n.KubeSecondaryDNSNameServerIP)
		if o.NetworkBinding != nil {
			n.NetworkBinding = o.NetworkBinding
		}
	}
	return v, n
}

func pick[T any](first, second *T) *T {
	if first != nil {
		return first
	}
	return second
}
