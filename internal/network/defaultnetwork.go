package network

import (
	"context"
	"fmt"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/home"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// defaultDefinition names the cluster's default network, for pods that ask something of it in annotation
// v1.multus-cni.io/default-network.
var defaultDefinition = client.ObjectKey{Namespace: home.Namespace, Name: podnetworks.Default}

// applyDefaultNetwork makes the definition, and puts it right when somebody has changed it.
func (n *Network) applyDefaultNetwork(ctx context.Context) error {
	d := &unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{"config": fmt.Sprintf(`{"cniVersion":"1.0.0","name":"ovn-kubernetes","type":%q}`, netconf.Type)},
	}}
	d.SetAPIVersion(nadv1.SchemeGroupVersion.String())
	d.SetKind("NetworkAttachmentDefinition")
	d.SetNamespace(defaultDefinition.Namespace)
	d.SetName(defaultDefinition.Name)
	if err := n.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(d), fieldOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("apply the definition %s of the default network: %w", defaultDefinition, err)
	}
	return nil
}
