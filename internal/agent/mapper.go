package agent

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	nmstatev1 "patchbay/api/nmstate/v1"
)

// newMapper knows the kinds that the controller defines before the API server does: an agent and the controller start at the same
// time, and an agent must not fail because it came first. Everything else is discovered when it is needed.
func newMapper(config *rest.Config, client *http.Client) (meta.RESTMapper, error) {
	ours := meta.NewDefaultRESTMapper(nil)
	ours.AddSpecific(virtv1.VirtualMachineInstanceGroupVersionKind, virtv1.SchemeGroupVersion.WithResource("virtualmachineinstances"),
		virtv1.SchemeGroupVersion.WithResource("virtualmachineinstance"), meta.RESTScopeNamespace)
	for plural, kind := range map[string]schema.GroupVersionKind{
		"nodenetworkconfigurationpolicies":   nmstatev1.GroupVersion.WithKind("NodeNetworkConfigurationPolicy"),
		"nodenetworkconfigurationenactments": nmstatev1.BetaGroupVersion.WithKind("NodeNetworkConfigurationEnactment"),
		"nodenetworkstates":                  nmstatev1.BetaGroupVersion.WithKind("NodeNetworkState"),
	} {
		version := kind.GroupVersion()
		ours.AddSpecific(kind, version.WithResource(plural), version.WithResource(strings.ToLower(kind.Kind)), meta.RESTScopeRoot)
	}
	discovered, err := apiutil.NewDynamicRESTMapper(config, client)
	if err != nil {
		return nil, err
	}
	return meta.FirstHitRESTMapper{MultiRESTMapper: meta.MultiRESTMapper{ours, discovered}}, nil
}
