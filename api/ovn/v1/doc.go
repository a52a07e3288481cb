// Package v1 holds the user-defined network kinds of k8s.ovn.org/v1, UserDefinedNetwork and ClusterUserDefinedNetwork. The rules
// that need nothing but the object are in the schema (markers below); what depends on the cluster is checked by the network
// controller and told in status.conditions.
//
// +groupName=k8s.ovn.org
// +kubebuilder:object:generate=true
package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

//go:generate go tool -modfile=../../../tools/go.mod controller-gen object paths=.

// GroupVersion is what the kinds are served as.
var GroupVersion = schema.GroupVersion{Group: "k8s.ovn.org", Version: "v1"}

// AddToScheme makes the kinds known to a client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&UserDefinedNetwork{}, &UserDefinedNetworkList{}, &ClusterUserDefinedNetwork{}, &ClusterUserDefinedNetworkList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
