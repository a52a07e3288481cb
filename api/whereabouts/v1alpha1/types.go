// Package v1alpha1 holds the kinds of whereabouts.cni.cncf.io in which addresses of networks of other CNI plugins are kept. The
// shapes are the published ones, because people and tools read them; the package must not decide who gets an address.
//
// +groupName=whereabouts.cni.cncf.io
// +kubebuilder:object:generate=true
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

//go:generate go tool -modfile=../../../tools/go.mod controller-gen object paths=.

// GroupVersion is the version that the kinds are used in.
var GroupVersion = schema.GroupVersion{Group: "whereabouts.cni.cncf.io", Version: "v1alpha1"}

// AddToScheme makes the kinds known to a client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &IPPool{}, &IPPoolList{}, &OverlappingRangeIPReservation{}, &OverlappingRangeIPReservationList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// IPPool says who has which address of one range.
//
// +kubebuilder:object:root=true
type IPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPPoolSpec `json:"spec,omitempty"`
}

// IPPoolSpec is the range and its holders.
type IPPoolSpec struct {
	// Range is in CIDR notation.
	Range string `json:"range"`
	// Allocations are the holders by address: the key is the address's decimal distance from the first of the range.
	Allocations map[string]IPAllocation `json:"allocations"`
}

// IPAllocation is the holder of one address.
type IPAllocation struct {
	// ContainerID is the sandbox that was given the address last.
	ContainerID string `json:"id"`
	// PodRef is the owner, see Owner.
	PodRef string `json:"podref"`
	// +optional
	IfName string `json:"ifname,omitempty"`
}

// IPPoolList is a list of them.
//
// +kubebuilder:object:root=true
type IPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPPool `json:"items"`
}

// OverlappingRangeIPReservation keeps one address, by its name, from being given out of two ranges that overlap.
//
// +kubebuilder:object:root=true
type OverlappingRangeIPReservation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec OverlappingRangeIPReservationSpec `json:"spec"`
}

// OverlappingRangeIPReservationSpec is the address's holder.
type OverlappingRangeIPReservationSpec struct {
	// +optional
	ContainerID string `json:"containerid,omitempty"`
	// PodRef is the owner, see Owner.
	PodRef string `json:"podref"`
	// +optional
	IfName string `json:"ifname,omitempty"`
}

// OverlappingRangeIPReservationList is a list of them.
//
// +kubebuilder:object:root=true
type OverlappingRangeIPReservationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []OverlappingRangeIPReservation `json:"items"`
}
