package chapter9

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// tenantPair makes two namespaces, in the order of their names.
func tenantPair(t *testing.T, labels ...string) (string, string) {
	t.Helper()
	both := []string{tenantNamespace(t, labels...), tenantNamespace(t, labels...)}
	slices.Sort(both)
	return both[0], both[1]
}

const inNamespaces = "True NetworkAttachmentDefinitionCreated NetworkAttachmentDefinition has been created in following namespaces: "

// 9.3.2.3: one network for several namespaces.
func TestClusterUserDefinedNetwork(t *testing.T) {
	t.Run("9.3.2.3-K1 applying the manifest", func(t *testing.T) {
		t.Cleanup(func() {
			_, _ = cluster.Kubectl(context.Background(), "delete", "cudn/shared-net", "namespace/tenant-red", "namespace/tenant-blue", "--timeout=2m")
		})
		if out := applyExample(t, "tenant-cluster-network.yaml", "--validate=true"); !strings.Contains(out, "clusteruserdefinednetwork.k8s.ovn.org/shared-net created\n") {
			t.Errorf("printed %q", out)
		}
		t.Run("9.3.2.3-C4 names of namespaces", func(t *testing.T) {
			reports(t, "", "cudn/shared-net", inNamespaces+"[tenant-blue, tenant-red]")
		})
	})
	a, b := tenantPair(t, "team", "c9", "stage", "one")
	t.Run("9.3.2.3-K2 finalizer and condition", func(t *testing.T) {
		primaryCUDN(t, "c9-k2", "{matchLabels: {team: c9}}", "10.220.0.0/16")
		reports(t, "", "cudn/c9-k2", inNamespaces+"["+a+", "+b+"]")
		out, err := cluster.Kubectl(t.Context(), "get", "clusteruserdefinednetwork", "c9-k2", "-o", "yaml")
		for _, want := range []string{"- k8s.ovn.org/user-defined-network-protection", "type: NetworkCreated", `status: "True"`} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", err, want, out)
			}
		}
		t.Run("9.3.2.3-C11 an attachment in each namespace", func(t *testing.T) {
			for _, ns := range []string{a, b} {
				if c := nadConfig(t, ns, "c9-k2"); !strings.Contains(c, `"name":"cluster_udn_c9-k2","netAttachDefName":"`+ns+`/c9-k2"`) {
					t.Error(c)
				}
			}
			refusedWith(t, "default", "{apiVersion: k8s.ovn.org/v1, kind: ClusterUserDefinedNetwork, metadata: {name: x}, spec: {namespaceSelector: {}}}",
				nil, "spec.network: Required value")
			refusedWith(t, "default", "{apiVersion: k8s.ovn.org/v1, kind: ClusterUserDefinedNetwork, metadata: {name: x}, "+
				"spec: {network: {topology: Layer2, layer2: {role: Primary, subnets: [10.1.0.0/24]}}}}", nil, "spec.namespaceSelector: Required value")
		})
		t.Run("9.3.2.3-C6 Layer2 is one switch", func(t *testing.T) {
			if c := nadConfig(t, a, "c9-k2"); !strings.Contains(c, `"topology":"layer2"`) {
				t.Error(c)
			}
		})
	})
	t.Run("9.3.2.3-C5 operators", func(t *testing.T) {
		for i, c := range []struct{ selector, want string }{
			{"{matchExpressions: [{key: stage, operator: In, values: [one]}]}", "[" + a + ", " + b + "]"},
			{"{matchExpressions: [{key: stage, operator: Exists}]}", "[" + a + ", " + b + "]"},
			{"{matchExpressions: [{key: stage, operator: Exists}, {key: kubernetes.io/metadata.name, operator: NotIn, values: [" + b + "]}]}", "[" + a + "]"},
			{"{matchExpressions: [{key: team, operator: In, values: [c9]}, {key: " + primaryLabel + ", operator: DoesNotExist}]}", "[]"},
		} {
			name := fmt.Sprintf("c9-op%d", i)
			clusterNetwork(t, name, "Secondary", c.selector, "10.221.0.0/16")
			reports(t, "", "cudn/"+name, inNamespaces+c.want)
		}
	})
	t.Run("9.3.2.3-C9 matchLabels are all asked for", func(t *testing.T) {
		if _, err := cluster.Kubectl(t.Context(), "label", "namespace", b, "stage=two", "--overwrite"); err != nil {
			t.Fatal(err)
		}
		clusterNetwork(t, "c9-and", "Secondary", "{matchLabels: {team: c9, stage: one}}", "10.222.0.0/16")
		reports(t, "", "cudn/c9-and", inNamespaces+"["+a+"]")
		if _, err := cluster.Kubectl(t.Context(), "label", "namespace", b, "stage=one", "--overwrite"); err != nil {
			t.Fatal(err)
		}
		reports(t, "", "cudn/c9-and", inNamespaces+"["+a+", "+b+"]")
	})
	t.Run("9.3.2.3-C8 a cluster administrator makes it", func(t *testing.T) {
		if may(t, "jane", "create", "clusteruserdefinednetworks.k8s.ovn.org", "") {
			t.Error("a user without rights may create it")
		}
	})
}

// A network for everybody reaches those that can have it, and leaves the system alone.
func TestNetworkForEveryNamespace(t *testing.T) {
	mine := tenantNamespace(t)
	manifest := strings.NewReplacer("{{.name}}", "c9-all", "{{.role}}", "Primary", "{{.selector}}", "{}", "{{.subnets}}", "10.223.0.0/16").Replace(cudnManifest)
	_, warnings, err := cluster.ApplyVerbose(t.Context(), "default", manifest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cluster.Kubectl(context.Background(), "delete", "cudn", "c9-all", "--timeout=2m") })
	reports(t, "", "cudn/c9-all", "False NetworkAttachmentDefinitionSyncError")
	t.Run("9.3.2.3-C10 an empty selector selects all, and is warned of", func(t *testing.T) {
		if !strings.Contains(warnings, "the namespaceSelector is empty and selects every namespace") {
			t.Errorf("warnings %q", warnings)
		}
		cluster.Eventually(t, soon, "the labelled namespace has the network", func() error {
			if !hasDefinition(t, mine, "c9-all") {
				return fmt.Errorf("namespace %s has not", mine)
			}
			return nil
		})
	})
	for name, namespaces := range map[string][]string{
		"9.3.2.3-C1 it does not reach default":              {"default"},
		"9.3.2.3-C2 it does not reach openshift namespaces": {"openshift-chapter9-all"},
		"9.3.2.3-C3 it does not reach system namespaces":    {"kube-system", "kube-public", "patchbay-system"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ns := range namespaces {
				if strings.HasPrefix(ns, "openshift-") {
					refusedWith(t, "default", "{apiVersion: v1, kind: Namespace, metadata: {name: "+ns+", labels: {"+primaryLabel+": ''}}}", nil,
						"belongs to the system and cannot have a primary user-defined network")
					cluster.Apply(t, "default", "{apiVersion: v1, kind: Namespace, metadata: {name: "+ns+"}}", nil)
					t.Cleanup(func() { _, _ = cluster.Kubectl(context.Background(), "delete", "namespace", ns) })
				}
				reports(t, "", "cudn/c9-all", fmt.Sprintf("invalid primary network state for namespace %q", ns))
				if hasDefinition(t, ns, "c9-all") {
					t.Errorf("namespace %s has the network", ns)
				}
			}
		})
	}
}
