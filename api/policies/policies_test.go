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
