package main

import (
	"cmp"

	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// kind says how one kind is named, served and listed.
type kind struct {
	group, kind, plural, singular string
	short, categories             []string
	scope                         apiext.ResourceScope
	goName                        string // of the Go type, when it is not kind
	versions                      []version
	columns                       []apiext.CustomResourceColumnDefinition
	status                        bool // status is a subresource
	annotations                   map[string]string
	edit                          func(*apiext.JSONSchemaProps)
}

// version is one served version of a kind; the first of a kind is stored.
type version struct {
	name      string
	goPackage string
	warning   string // given to every client that uses the version
}

func (k kind) goType() string { return cmp.Or(k.goName, k.kind) }

func (k kind) version(v version, schema *apiext.JSONSchemaProps) apiext.CustomResourceDefinitionVersion {
	served := apiext.CustomResourceDefinitionVersion{
		Name:                     v.name,
		Served:                   true,
		Storage:                  v == k.versions[0],
		Deprecated:               v.warning != "",
		Schema:                   &apiext.CustomResourceValidation{OpenAPIV3Schema: schema},
		AdditionalPrinterColumns: k.columns,
	}
	if v.warning != "" {
		served.DeprecationWarning = &v.warning
	}
	if k.status {
		served.Subresources = &apiext.CustomResourceSubresources{Status: &apiext.CustomResourceSubresourceStatus{}}
	}
	return served
}

var (
	all = []string{"all"}
	// virt are the versions of the kubevirt.io kinds. They have the same fields; old manifests name the second.
	virt = []version{
		{name: "v1", goPackage: "kubevirt.io/api/core/v1"},
		{name: "v1alpha3", goPackage: "kubevirt.io/api/core/v1",
			warning: "kubevirt.io/v1alpha3 is now deprecated and will be removed in a future release."},
	}
	age = apiext.CustomResourceColumnDefinition{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp"}
)

func text(name, path string) apiext.CustomResourceColumnDefinition {
	return apiext.CustomResourceColumnDefinition{Name: name, Type: "string", JSONPath: path}
}

func wide(name, path string) apiext.CustomResourceColumnDefinition {
	return apiext.CustomResourceColumnDefinition{Name: name, Type: "string", JSONPath: path, Priority: 1}
}

func condition(name string) string {
	return `.status.conditions[?(@.type=='` + name + `')].status`
}

// kinds are all that Patchbay serves as custom resources.
var kinds = []kind{
	{
		group: "kubevirt.io", kind: "VirtualMachine", plural: "virtualmachines", singular: "virtualmachine",
		short: []string{"vm", "vms"}, categories: all, scope: apiext.NamespaceScoped, versions: virt, status: true,
		columns: []apiext.CustomResourceColumnDefinition{
			age, text("Status", ".status.printableStatus"), text("Ready", condition("Ready")),
		},
	},
	{
		// No status subresource: published clients write status through the object itself.
		group: "kubevirt.io", kind: "VirtualMachineInstance", plural: "virtualmachineinstances", singular: "virtualmachineinstance",
		short: []string{"vmi", "vmis"}, categories: all, scope: apiext.NamespaceScoped, versions: virt,
		columns: []apiext.CustomResourceColumnDefinition{
			age, text("Phase", ".status.phase"), text("IP", ".status.interfaces[0].ipAddress"), text("NodeName", ".status.nodeName"),
			text("Ready", condition("Ready")), wide("Live-Migratable", condition("LiveMigratable")), wide("Paused", condition("Paused")),
		},
	},
	{
		group: "kubevirt.io", kind: "VirtualMachineInstanceMigration", plural: "virtualmachineinstancemigrations",
		singular: "virtualmachineinstancemigration", short: []string{"vmim", "vmims"}, categories: all,
		scope: apiext.NamespaceScoped, versions: virt, status: true,
		columns: []apiext.CustomResourceColumnDefinition{text("Phase", ".status.phase"), text("VMI", ".spec.vmiName")},
	},
	{
		group: "kubevirt.io", kind: "KubeVirt", plural: "kubevirts", singular: "kubevirt",
		short: []string{"kv", "kvs"}, categories: all, scope: apiext.NamespaceScoped, versions: virt, status: true,
		columns: []apiext.CustomResourceColumnDefinition{age, text("Phase", ".status.phase")},
	},
	{
		group: "migrations.kubevirt.io", kind: "MigrationPolicy", plural: "migrationpolicies", singular: "migrationpolicy",
		categories: all, scope: apiext.ClusterScoped, status: true,
		versions: []version{{name: "v1alpha1", goPackage: "kubevirt.io/api/migrations/v1alpha1"}},
	},
	{
		group: "hco.kubevirt.io", kind: "HyperConverged", plural: "hyperconvergeds", singular: "hyperconverged",
		short: []string{"hco", "hcos"}, scope: apiext.NamespaceScoped, status: true, columns: []apiext.CustomResourceColumnDefinition{age},
		versions: []version{{name: "v1beta1", goPackage: "patchbay/api/hco/v1beta1"}, {name: "v1", goPackage: "patchbay/api/hco/v1beta1"}},
	},
	{
		group: "k8s.ovn.org", kind: "UserDefinedNetwork", plural: "userdefinednetworks", singular: "userdefinednetwork",
		short: []string{"udn"}, scope: apiext.NamespaceScoped, status: true,
		versions: []version{{name: "v1", goPackage: "patchbay/api/ovn/v1"}},
	},
	{
		group: "k8s.ovn.org", kind: "ClusterUserDefinedNetwork", plural: "clusteruserdefinednetworks", singular: "clusteruserdefinednetwork",
		short: []string{"cudn"}, scope: apiext.ClusterScoped, status: true,
		versions: []version{{name: "v1", goPackage: "patchbay/api/ovn/v1"}},
	},
	{
		group: "k8s.cni.cncf.io", kind: "NetworkAttachmentDefinition", plural: "network-attachment-definitions",
		singular: "network-attachment-definition", short: []string{"net-attach-def", "nad"}, scope: apiext.NamespaceScoped,
		versions: []version{{name: "v1", goPackage: attachments + "network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"}},
		edit:     optionalSpec,
	},
	{
		group: "k8s.cni.cncf.io", kind: "IPAMClaim", plural: "ipamclaims", singular: "ipamclaim", scope: apiext.NamespaceScoped, status: true,
		versions: []version{{name: "v1alpha1", goPackage: attachments + "ipamclaims/pkg/crd/ipamclaims/v1alpha1"}},
	},
	{
		group: "k8s.cni.cncf.io", kind: "MultiNetworkPolicy", plural: "multi-networkpolicies", singular: "multi-networkpolicy",
		short: []string{"multi-policy"}, scope: apiext.NamespaceScoped, columns: []apiext.CustomResourceColumnDefinition{age},
		versions: []version{
			{name: "v1beta1", goPackage: attachments + "multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"},
			{name: "v1beta2", goPackage: attachments + "multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta2"},
		},
	},
	{
		group: "whereabouts.cni.cncf.io", kind: "IPPool", plural: "ippools", singular: "ippool", scope: apiext.NamespaceScoped,
		columns:  []apiext.CustomResourceColumnDefinition{text("Range", ".spec.range"), age},
		versions: []version{{name: "v1alpha1", goPackage: "patchbay/api/whereabouts/v1alpha1"}},
	},
	{
		group: "whereabouts.cni.cncf.io", kind: "OverlappingRangeIPReservation", plural: "overlappingrangeipreservations",
		singular: "overlappingrangeipreservation", scope: apiext.NamespaceScoped,
		columns:  []apiext.CustomResourceColumnDefinition{text("Owner", ".spec.podref"), age},
		versions: []version{{name: "v1alpha1", goPackage: "patchbay/api/whereabouts/v1alpha1"}},
	},
	{
		group: "nmstate.io", kind: "NodeNetworkConfigurationPolicy", plural: "nodenetworkconfigurationpolicies",
		singular: "nodenetworkconfigurationpolicy", short: []string{"nncp"}, scope: apiext.ClusterScoped, status: true,
		columns:  []apiext.CustomResourceColumnDefinition{text("Status", current("type")), text("Reason", current("reason"))},
		versions: []version{{name: "v1", goPackage: "patchbay/api/nmstate/v1"}, {name: "v1beta1", goPackage: "patchbay/api/nmstate/v1"}},
	},
	{
		group: "nmstate.io", kind: "NodeNetworkConfigurationEnactment", plural: "nodenetworkconfigurationenactments",
		singular: "nodenetworkconfigurationenactment", short: []string{"nnce"}, scope: apiext.ClusterScoped, status: true,
		columns: []apiext.CustomResourceColumnDefinition{
			text("Status", current("type")),
			{Name: "Status Age", Type: "date", JSONPath: current("lastTransitionTime")},
			text("Reason", current("reason")),
		},
		versions: []version{{name: "v1beta1", goPackage: "patchbay/api/nmstate/v1"}},
	},
	{
		group: "nmstate.io", kind: "NodeNetworkState", plural: "nodenetworkstates", singular: "nodenetworkstate",
		short: []string{"nns"}, scope: apiext.ClusterScoped, status: true, columns: []apiext.CustomResourceColumnDefinition{age},
		versions: []version{{name: "v1beta1", goPackage: nmstate + "v1beta1"}},
	},
	{
		group: "nmstate.io", kind: "NMState", plural: "nmstates", singular: "nmstate", scope: apiext.ClusterScoped, status: true,
		columns:  []apiext.CustomResourceColumnDefinition{text("Status", current("type")), text("Reason", current("reason"))},
		versions: []version{{name: "v1", goPackage: nmstate + "v1"}},
		edit:     onlyNMState,
	},
}

// Where kinds are published.
const (
	attachments = "github.com/k8snetworkplumbingwg/"
	nmstate     = "github.com/nmstate/kubernetes-nmstate/api/"
)

// current is a field of the condition that is true.
func current(field string) string { return `.status.conditions[?(@.status=="True")].` + field }

// onlyNMState: there is one object of the kind. It takes the settings of newer publications than the Go types', too.
func onlyNMState(s *apiext.JSONSchemaProps) {
	spec := s.Properties["spec"]
	spec.XPreserveUnknownFields = new(true)
	s.Properties["spec"] = spec
	s.XValidations = append(s.XValidations, apiext.ValidationRule{
		Rule: "self.metadata.name == 'nmstate'", Message: "the NMState object must be called nmstate",
	})
}

// optionalSpec: a definition without a spec names a configuration file on the node.
func optionalSpec(s *apiext.JSONSchemaProps) {
	s.Required = nil
	spec := s.Properties["spec"]
	spec.Required = nil
	s.Properties["spec"] = spec
}
