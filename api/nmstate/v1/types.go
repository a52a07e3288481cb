// Package v1 holds the node network kinds of nmstate.io that Patchbay writes: the policy and what a node made of it. They are the
// published kinds with the fields that newer clients know and the published Go types lack. NMState and NodeNetworkState are
// used as published.
//
// +groupName=nmstate.io
// +kubebuilder:object:generate=true
package v1

import (
	"github.com/nmstate/kubernetes-nmstate/api/shared"
	nmstatev1 "github.com/nmstate/kubernetes-nmstate/api/v1"
	nmstatev1beta1 "github.com/nmstate/kubernetes-nmstate/api/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

//go:generate go tool -modfile=../../../tools/go.mod controller-gen object paths=.

// The versions that the kinds are used in.
var (
	GroupVersion     = schema.GroupVersion{Group: "nmstate.io", Version: "v1"}
	BetaGroupVersion = schema.GroupVersion{Group: "nmstate.io", Version: "v1beta1"}
)

// AddToScheme makes the kinds known to a client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &NodeNetworkConfigurationPolicy{}, &NodeNetworkConfigurationPolicyList{}, &nmstatev1.NMState{}, &nmstatev1.NMStateList{})
	s.AddKnownTypes(BetaGroupVersion, &NodeNetworkConfigurationEnactment{}, &NodeNetworkConfigurationEnactmentList{},
		&nmstatev1beta1.NodeNetworkState{}, &nmstatev1beta1.NodeNetworkStateList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	metav1.AddToGroupVersion(s, BetaGroupVersion)
	return nil
}

// NodeNetworkConfigurationPolicy says how the network of nodes shall be configured.
//
// +kubebuilder:object:root=true
type NodeNetworkConfigurationPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec shared.NodeNetworkConfigurationPolicySpec `json:"spec,omitempty"`
	// +optional
	Status PolicyStatus `json:"status,omitempty"`
}

// PolicyStatus sums up what the nodes made of a policy.
type PolicyStatus struct {
	shared.NodeNetworkConfigurationPolicyStatus `json:",inline"`
	// UnavailableNodeCountMap is how many nodes are configuring or have failed, by the policy's generation.
	// +optional
	UnavailableNodeCountMap map[string]int `json:"unavailableNodeCountMap,omitempty"`
	// ObservedGeneration is the policy's generation that the conditions are about; kubectl wait looks at it.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// NodeNetworkConfigurationPolicyList is a list of them.
//
// +kubebuilder:object:root=true
type NodeNetworkConfigurationPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeNetworkConfigurationPolicy `json:"items"`
}

// NodeNetworkConfigurationEnactment is what one node made of one policy.
//
// +kubebuilder:object:root=true
type NodeNetworkConfigurationEnactment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status EnactmentStatus `json:"status,omitempty"`
}

// EnactmentStatus is what one node made of one policy.
type EnactmentStatus struct {
	shared.NodeNetworkConfigurationEnactmentStatus `json:",inline"`
	// RetryCount is how often the node tried, by the policy's generation.
	// +optional
	RetryCount map[string]int `json:"retryCount,omitempty"`
}

// NodeNetworkConfigurationEnactmentList is a list of them.
//
// +kubebuilder:object:root=true
type NodeNetworkConfigurationEnactmentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeNetworkConfigurationEnactment `json:"items"`
}
