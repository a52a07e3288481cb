package bootstrap

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"patchbay/internal/cluster/pki"
)

func objects(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	all, err := Objects([]string{"node-1", "node-2"})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestObjectsAreApplicableAndUnique(t *testing.T) {
	seen := map[string]bool{}
	var names []string
	for _, o := range objects(t) {
		name := o.GetKind() + " " + o.GetName()
		if _, ok := resources[o.GetKind()]; !ok || seen[name] || o.GetName() == "" {
			t.Errorf("%s cannot be applied, or is there twice", name)
		}
		seen[name] = true
		names = append(names, name)
	}
	want := []string{
		"Namespace patchbay-system", "ClusterRoleBinding patchbay:kubelet-clients",
		"ClusterRole patchbay:controller", "ClusterRoleBinding patchbay:controller",
		"ClusterRole patchbay:agent", "ClusterRoleBinding patchbay:agent",
		"Role patchbay:agent:addresses", "RoleBinding patchbay:agent:addresses",
		"ClusterRole patchbay:dns", "ClusterRoleBinding patchbay:dns",
		"ClusterRole patchbay:networks:admin", "ClusterRole patchbay:networks:view",
		"ClusterRole patchbay:agent:node-1", "ClusterRoleBinding patchbay:agent:node-1",
		"ClusterRole patchbay:agent:node-2", "ClusterRoleBinding patchbay:agent:node-2",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSubjectsAreThoseOfTheCertificates keeps the two files that name users in step.
func TestSubjectsAreThoseOfTheCertificates(t *testing.T) {
	known := map[string]bool{
		pki.ControllerUser: true, pki.DNSUser: true, pki.AgentGroup: true, "patchbay:kubelet-clients": true,
		pki.AgentUserPrefix + "node-1": true, pki.AgentUserPrefix + "node-2": true,
	}
	for _, o := range objects(t) {
		subjects, _, err := unstructured.NestedSlice(o.Object, "subjects")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range subjects {
			if name := s.(map[string]any)["name"].(string); !known[name] {
				t.Errorf("%s is bound to %q, whom no certificate names", o.GetName(), name)
			}
		}
	}
}

// TestLeastPrivilege names what nobody but an administrator may do.
func TestLeastPrivilege(t *testing.T) {
	for _, o := range objects(t) {
		rules, _, err := unstructured.NestedSlice(o.Object, "rules")
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range rules {
			checkRule(t, o.GetName(), rule.(map[string]any))
		}
	}
}

func checkRule(t *testing.T, role string, rule map[string]any) {
	t.Helper()
	groups, resources, verbs := list(rule["apiGroups"]), list(rule["resources"]), list(rule["verbs"])
	for _, group := range groups {
		if group == "*" {
			t.Errorf("%s has a rule for all API groups", role)
		}
		// Everything of a group may be changed only where Patchbay defines the group.
		own := strings.HasSuffix(group, "kubevirt.io") || group == "k8s.ovn.org" || group == "k8s.cni.cncf.io" || group == "nmstate.io"
		if contains(resources, "*") && contains(verbs, "create") && !own {
			t.Errorf("%s may change everything of group %q", role, group)
		}
	}
	for _, verb := range []string{"escalate", "bind", "impersonate"} {
		// Named roles may be handed on; any role would be everything.
		if contains(verbs, verb) && rule["resourceNames"] == nil {
			t.Errorf("%s may %s anything", role, verb)
		}
	}
	if strings.HasPrefix(role, "patchbay:agent") && contains(resources, "secrets") {
		t.Errorf("%s reads secrets; a node's agent has no use for them", role)
	}
	if role == "patchbay:agent" && contains(resources, "nodes") && (contains(verbs, "patch") || contains(verbs, "update")) {
		t.Errorf("%s may change other nodes", role)
	}
}

func list(value any) []string {
	var out []string
	for _, v := range value.([]any) {
		out = append(out, v.(string))
	}
	return out
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}
