package v1beta1

// MigrationNetworkAnnotation on a Node is what its agent says of the network of migrations, a MigrationMember as JSON. It is there while
// one is wanted.
const MigrationNetworkAnnotation = "patchbay.io/migration-network"

// SourceAnnotation on the KubeVirt object is the namespace of the HyperConverged object that it follows, where the network of
// migrations is looked for.
const SourceAnnotation = "patchbay.io/hyperconverged-namespace"

// MigrationMember is one node on the network of migrations.
//
// +kubebuilder:object:generate=false
type MigrationMember struct {
	Network string `json:"network"` // as liveMigrationConfig.network says it
	// Address is the node's on the network; empty while Problem says why there is none.
	Address string `json:"address,omitempty"`
	Problem string `json:"problem,omitempty"`
}
