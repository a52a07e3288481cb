package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// UserDefinedNetwork is a network of one namespace.
//
// +kubebuilder:object:root=true
type UserDefinedNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="(self.topology == 'Layer2') == has(self.layer2)",message="spec.layer2 is required when topology is Layer2 and forbidden otherwise"
	// +kubebuilder:validation:XValidation:rule="(self.topology == 'Layer3') == has(self.layer3)",message="spec.layer3 is required when topology is Layer3 and forbidden otherwise"
	Spec UserDefinedNetworkSpec `json:"spec"`
	// +optional
	Status NetworkStatus `json:"status,omitempty"`
}

// UserDefinedNetworkList is a list of networks.
//
// +kubebuilder:object:root=true
type UserDefinedNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []UserDefinedNetwork `json:"items"`
}

// UserDefinedNetworkSpec says what the network is like. Exactly the field that topology names is set.
type UserDefinedNetworkSpec struct {
	// Topology of the network: Layer2 is one switch for all nodes, Layer3 a routed subnet per node.
	// +kubebuilder:validation:Enum=Layer2;Layer3
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Topology is immutable"
	Topology Topology `json:"topology"`
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Layer2 is immutable"
	Layer2 *Layer2Config `json:"layer2,omitempty"`
	// +optional
	Layer3 *Layer3Config `json:"layer3,omitempty"`
}

// ClusterUserDefinedNetwork is one network shared by the namespaces that it selects.
//
// +kubebuilder:object:root=true
type ClusterUserDefinedNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ClusterUserDefinedNetworkSpec `json:"spec"`
	// +optional
	Status NetworkStatus `json:"status,omitempty"`
}

// ClusterUserDefinedNetworkList is a list of networks.
//
// +kubebuilder:object:root=true
type ClusterUserDefinedNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterUserDefinedNetwork `json:"items"`
}

// ClusterUserDefinedNetworkSpec says what the network is like and who gets it.
type ClusterUserDefinedNetworkSpec struct {
	// NamespaceSelector selects the namespaces that get the network; an empty one selects all.
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	// +kubebuilder:validation:XValidation:rule="(self.topology == 'Layer2') == has(self.layer2)",message="spec.layer2 is required when topology is Layer2 and forbidden otherwise"
	// +kubebuilder:validation:XValidation:rule="(self.topology == 'Layer3') == has(self.layer3)",message="spec.layer3 is required when topology is Layer3 and forbidden otherwise"
	// +kubebuilder:validation:XValidation:rule="(self.topology == 'Localnet') == has(self.localnet)",message="spec.localnet is required when topology is Localnet and forbidden otherwise"
	// +kubebuilder:validation:XValidation:rule="has(self.transport) == has(oldSelf.transport) && (!has(self.transport) || self.transport == oldSelf.transport)",message="Transport is immutable"
	Network NetworkSpec `json:"network"`
}

// NetworkSpec says what a cluster's network is like. Exactly the field that topology names is set.
type NetworkSpec struct {
	// Topology of the network: Layer2 is one switch for all nodes, Layer3 a routed subnet per node, Localnet a physical network.
	// +kubebuilder:validation:Enum=Layer2;Layer3;Localnet
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Topology is immutable"
	Topology Topology `json:"topology"`
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Layer2 is immutable"
	Layer2 *Layer2Config `json:"layer2,omitempty"`
	// +optional
	Layer3 *Layer3Config `json:"layer3,omitempty"`
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="Localnet is immutable"
	Localnet *LocalnetConfig `json:"localnet,omitempty"`
	// Transport between nodes. Only Geneve tunnels exist here; unset means them.
	// +optional
	// +kubebuilder:validation:Enum=Geneve
	Transport string `json:"transport,omitempty"`
}

// NetworkStatus is what the network controllers observed.
type NetworkStatus struct {
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Topology is the shape of a network.
type Topology string

// The topologies.
const (
	Layer2   Topology = "Layer2"
	Layer3   Topology = "Layer3"
	Localnet Topology = "Localnet"
)

// Role is what a network is to the pods on it.
//
// +kubebuilder:validation:Enum=Primary;Secondary
type Role string

// The roles: a primary network takes the place of the cluster's own, a secondary one is added to it.
const (
	Primary   Role = "Primary"
	Secondary Role = "Secondary"
)
