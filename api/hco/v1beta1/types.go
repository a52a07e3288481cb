// Package v1beta1 holds the HyperConverged kind of hco.kubevirt.io, in which an administrator says how virtual machines are run
// in the cluster. Both served versions, v1beta1 and v1, have both published layouts: v1beta1's, with everything below spec, and
// v1's, with sections. Admission keeps the two equal (Agree), so that a manifest works under either version, and every published
// command finds a setting where its version has it.
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
	// +kubebuilder:validation:Minimum=1
	ParallelMigrationsPerCluster *uint32 `json:"parallelMigrationsPerCluster,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=1
	ParallelOutboundMigrationsPerNode *uint32 `json:"parallelOutboundMigrationsPerNode,omitempty"`
	// BandwidthPerMigration is a quantity of bytes per second.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!quantity(string(self)).isLessThan(quantity('0'))",message="must not be negative"
	BandwidthPerMigration *resource.Quantity `json:"bandwidthPerMigration,omitempty"`
	// CompletionTimeoutPerGiB is the time for each GiB of memory, in seconds.
	// +optional
	// +kubebuilder:validation:Minimum=0
	CompletionTimeoutPerGiB *int64 `json:"completionTimeoutPerGiB,omitempty"`
	// ProgressTimeout is how long a migration may stand still, in seconds.
	// +optional
	// +kubebuilder:validation:Minimum=0
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

// KubeMacPoolConfiguration is a range of MAC addresses of NICs, so neither end is a multicast address.
//
// +kubebuilder:validation:XValidation:rule="has(self.rangeStart) == has(self.rangeEnd)",message="both rangeStart and rangeEnd must be configured together, or both omitted"
// +kubebuilder:validation:XValidation:rule="!has(self.rangeStart) || !has(self.rangeEnd) || self.rangeStart.lowerAscii() < self.rangeEnd.lowerAscii()",messageExpression="'failed to set mac address range: invalid range. Range end is lesser than or equal to its start. start: ' + self.rangeStart + ' end: ' + self.rangeEnd"
// +kubebuilder:validation:XValidation:rule="!has(self.rangeStart) || !self.rangeStart.matches('^.[13579bdfBDF]')",messageExpression="'failed to set RangeStart: invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0X' + self.rangeStart.substring(self.rangeStart.startsWith('0') ? 1 : 0, 2).upperAscii()"
// +kubebuilder:validation:XValidation:rule="!has(self.rangeEnd) || !self.rangeEnd.matches('^.[13579bdfBDF]')",messageExpression="'failed to set RangeEnd: invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0X' + self.rangeEnd.substring(self.rangeEnd.startsWith('0') ? 1 : 0, 2).upperAscii()"
type KubeMacPoolConfiguration struct {
	// RangeStart is the first address of the range, as 02:00:00:00:00:00.
	// +optional
	// +kubebuilder:validation:MaxLength=17
	// +kubebuilder:validation:Pattern=`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`
	RangeStart *string `json:"rangeStart,omitempty"`
	// RangeEnd is the last address of the range.
	// +optional
	// +kubebuilder:validation:MaxLength=17
	// +kubebuilder:validation:Pattern=`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`
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
