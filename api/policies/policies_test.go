package policies_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"patchbay/api/crds"
	"patchbay/api/policies"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/test/apiserver"
)

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

const label = "k8s.ovn.org/primary-user-defined-network"

func manifest(apiVersion, kind, metadata, rest string) string {
	return "{apiVersion: " + apiVersion + ", kind: " + kind + ", metadata: {" + metadata + "}" + rest + "}"
}

// admin is somebody who administers a namespace.
const admin = " --as=alice"

const alice = `
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "test:definitions"}, rules: [
  {apiGroups: [k8s.cni.cncf.io], resources: [network-attachment-definitions], verbs: ["*"]},
  {apiGroups: [k8s.ovn.org], resources: [userdefinednetworks], verbs: ["*"]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: alice, namespace: blue},
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "test:definitions"}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]}
`

const ownerJSON = `"ownerReferences":[{"apiVersion":"k8s.ovn.org/v1","kind":"ClusterUserDefinedNetwork","name":"some","uid":"u","controller":true}]`

func agent(node string) string { return " --as=patchbay:agent:" + node + " --as-group=patchbay:agents" }

func owner(kind, name string) string {
	return ", ownerReferences: [{apiVersion: k8s.ovn.org/v1, kind: " + kind + ", name: " + name + ", uid: u, controller: true}]"
}

func definition(metadata, network string) string {
	return manifest("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", metadata, `, spec: {config: '{"type":"ovn-k8s-cni-overlay","topology":"layer2","name":"`+network+`"}'}`)
}

func enactment(name, node string) string {
	return manifest("nmstate.io/v1beta1", "NodeNetworkConfigurationEnactment", "name: "+name+", labels: {nmstate.io/node: "+node+"}", "")
}

func TestPolicies(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	if err := bootstrap.Apply(ctx, server.Config, nil); err != nil {
		t.Fatal(err)
	}
	own := server.As("patchbay:controller")
	if err := crds.Apply(ctx, own); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing may stand in the way
		if err := policies.Apply(ctx, own); err != nil {
			t.Fatal(err)
		}
	}
	const layer2 = ", spec: {topology: Layer2, layer2: {role: Primary, subnets: [10.1.0.0/16]}}"
	shared := func(selector string) string {
		return ", spec: {namespaceSelector: " + selector + ", network: {topology: Layer2, layer2: {role: Primary, subnets: [10.1.0.0/16]}}}"
	}
	waitEnforced(ctx, t, manifest("v1", "Namespace", "name: kube-own, labels: {"+label+": ''}", ""))
	for _, step := range []struct {
		name, args, stdin string
		ok                bool
		want              string // in standard error
	}{
		{name: "tenant", args: "create -f -", stdin: manifest("v1", "Namespace", "name: red, labels: {"+label+": ''}", ""), ok: true},
		{name: "plain namespace", args: "create namespace blue", ok: true},
		{name: "its administrator", args: "create -f -", stdin: alice, ok: true},
		{name: "label added", args: "label namespace blue " + label + "=",
			want: "The '" + label + "' label cannot be added/removed after the namespace was created"},
		{name: "label removed", args: "label namespace red " + label + "-",
			want: "The '" + label + "' label cannot be added/removed after the namespace was created"},
		{name: "label's value", args: "label namespace red --overwrite " + label + "=x", ok: true},
		{name: "other label", args: "label namespace blue tier=web", ok: true},
		{name: "namespace of the system", args: "create -f -", stdin: manifest("v1", "Namespace", "name: openshift-x, labels: {"+label+": ''}", ""),
			want: "namespace openshift-x belongs to the system and cannot have a primary user-defined network"},
		{name: "network", args: "create -f -", stdin: manifest("k8s.ovn.org/v1", "UserDefinedNetwork", "name: net, namespace: red", layer2), ok: true},
		{name: "network in default", args: "create -f -", stdin: manifest("k8s.ovn.org/v1", "UserDefinedNetwork", "name: net, namespace: default", layer2),
			want: "namespace default belongs to the system and cannot have user-defined networks"},
		{name: "network called default", args: "create -f -", stdin: manifest("k8s.ovn.org/v1", "UserDefinedNetwork", "name: default, namespace: red", layer2),
			want: "a user-defined network cannot be called default"},
		{name: "network for some", args: "create -f -", stdin: manifest("k8s.ovn.org/v1", "ClusterUserDefinedNetwork", "name: some", shared("{matchLabels: {a: b}}")), ok: true},
		{name: "network for everyone", args: "create -f -", stdin: manifest("k8s.ovn.org/v1", "ClusterUserDefinedNetwork", "name: all", shared("{}")), ok: true,
			want: "Warning: Validation failed for ValidatingAdmissionPolicy 'patchbay-network-for-everyone'"},
		{name: "service account for the pod", args: "create serviceaccount default -n blue", ok: true},
		{name: "pod", args: "create -f -", ok: true, stdin: manifest("v1", "Pod", "name: p, namespace: blue, annotations: {v1.multus-cni.io/default-network: x}",
			", spec: {containers: [{name: c, image: i}]}")},
		{name: "its annotation", args: "annotate pod p -n blue --overwrite v1.multus-cni.io/default-network=z",
			want: "The 'v1.multus-cni.io/default-network' annotation cannot be changed after the pod was created"},
		{name: "another annotation", args: "annotate pod p -n blue a=b", ok: true},
		{name: "pod that says its ports", args: "create -f -", stdin: manifest("v1", "Pod", "name: q, namespace: blue, annotations: {k8s.ovn.org/pod-networks: '{}'}",
			", spec: {containers: [{name: c, image: i}]}"), want: "The 'k8s.ovn.org/pod-networks' annotation is written by the network controller alone"},
		{name: "ports said later", args: "annotate pod p -n blue k8s.ovn.org/pod-networks={}", want: "The 'k8s.ovn.org/pod-networks' annotation is written by the network controller alone"},
		{name: "the controller says them", args: "annotate pod p -n blue --as=patchbay:controller k8s.ovn.org/pod-networks={}", ok: true},
		{name: "labelled afterwards", args: "label pod p -n blue c=d", ok: true},

		{name: "definition by hand", args: "create -f -" + admin, stdin: definition("name: own, namespace: blue", "own"), ok: true},
		{name: "definition for a cluster's network", args: "create -f -" + admin, stdin: definition("name: some, namespace: blue"+owner("ClusterUserDefinedNetwork", "some"), "cluster_udn_some"),
			want: "the definition cannot be made for ClusterUserDefinedNetwork some by somebody who may not change that network"},
		{name: "owner added later", args: "patch network-attachment-definitions own -n blue --type=merge -p {\"metadata\":{" + ownerJSON + "}}" + admin,
			want: "the definition cannot be made for ClusterUserDefinedNetwork some"},
		{name: "definition of a network of its namespace", args: "create -f -" + admin, stdin: definition("name: net, namespace: blue"+owner("UserDefinedNetwork", "net"), "blue_net"), ok: true},
		{name: "the controller makes it", args: "create -f - --as=patchbay:controller", stdin: definition("name: some, namespace: blue"+owner("ClusterUserDefinedNetwork", "some"), "cluster_udn_some"), ok: true},
		{name: "somebody else annotates it", args: "annotate network-attachment-definitions some -n blue a=b" + admin, ok: true},
		{name: "somebody takes the owner off", args: "patch network-attachment-definitions some -n blue --type=merge -p {\"metadata\":{\"ownerReferences\":null}}" + admin, ok: true},
		{name: "and puts it on again", args: "patch network-attachment-definitions some -n blue --type=merge -p {\"metadata\":{" + ownerJSON + "}}" + admin,
			want: "the definition cannot be made for ClusterUserDefinedNetwork some"},

		{name: "own enactment", args: "create -f -" + agent("node-1"), stdin: enactment("node-1.bridge", "node-1"), ok: true},
		{name: "another node's enactment", args: "create -f -" + agent("node-2"), stdin: enactment("node-1.other", "node-1"),
			want: "the agent of node node-2 may write enactments of its own node only"},
		{name: "a name of another node", args: "create -f -" + agent("node-2"), stdin: enactment("node-1.other", "node-2"), want: "of its own node only"},
		{name: "a longer name of a node", args: "create -f -" + agent("node-1"), stdin: enactment("node-10.other", "node-1"), want: "of its own node only"},
		{name: "another node changes it", args: "label nodenetworkconfigurationenactments node-1.bridge a=b" + agent("node-2"), want: "of its own node only"},
		{name: "another node changes its status", args: "patch nodenetworkconfigurationenactments node-1.bridge --subresource=status --type=merge -p {\"status\":{\"policyGeneration\":7}}" + agent("node-2"),
			want: "of its own node only"},
		{name: "another node deletes it", args: "delete nodenetworkconfigurationenactments node-1.bridge" + agent("node-2"), want: "of its own node only"},
		{name: "it is not given away", args: "label --overwrite nodenetworkconfigurationenactments node-1.bridge nmstate.io/node=node-2" + agent("node-1"), want: "of its own node only"},
		{name: "its status", args: "patch nodenetworkconfigurationenactments node-1.bridge --subresource=status --type=merge -p {\"status\":{\"policyGeneration\":7}}" + agent("node-1"), ok: true},
		{name: "it is deleted", args: "delete nodenetworkconfigurationenactments node-1.bridge" + agent("node-1"), ok: true},
		{name: "own state", args: "create -f -" + agent("node-1"), stdin: manifest("nmstate.io/v1beta1", "NodeNetworkState", "name: node-1", ""), ok: true},
		{name: "another node's state", args: "create -f -" + agent("node-1"), stdin: manifest("nmstate.io/v1beta1", "NodeNetworkState", "name: node-2", ""),
			want: "an agent may write the network state of its own node only"},
	} {
		_, problems, err := server.Kubectl(ctx, strings.NewReader(step.stdin), strings.Fields(step.args)...)
		if (err == nil) != step.ok || !strings.Contains(problems, step.want) || step.want == "" && problems != "" {
			t.Errorf("%s: error %v %q, want success %t and %q", step.name, err, problems, step.ok, step.want)
		}
	}
}

// waitEnforced asks until the API server has taken the policies up, which it does from a watch.
func waitEnforced(ctx context.Context, t *testing.T, refused string) {
	t.Helper()
	for {
		_, problems, err := server.Kubectl(ctx, strings.NewReader(refused), "create", "--dry-run=server", "-f", "-")
		if err != nil && strings.Contains(problems, "belongs to the system") {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the policies are not enforced: %v %s", err, problems)
		}
	}
}
