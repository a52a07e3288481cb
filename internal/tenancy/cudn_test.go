package tenancy

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
)

func existsIn(namespaces string) string {
	return "True NetworkAttachmentDefinitionCreated NetworkAttachmentDefinition has been created in following namespaces: [" + namespaces + "]"
}

// pair makes two labelled namespaces, in the order of their names.
func (s *site) pair(labels map[string]string) (string, string) {
	s.t.Helper()
	a, b := s.namespace(labels), s.namespace(labels)
	if a > b {
		a, b = b, a
	}
	return a, b
}

func TestNetworkOfCluster(t *testing.T) {
	s := newSite(t)
	c := cudn("shared", tenants("blue"), layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(""))
	a, b := s.pair(primary("tenant", "blue"))
	s.says(c, ovnv1.NetworkCreated, existsIn(a+", "+b))
	d := s.definition(b, "shared")
	want := fmt.Sprintf(`{"cniVersion":"1.1.0","type":"ovn-k8s-cni-overlay","name":"cluster_udn_shared","netAttachDefName":"%s/shared",`+
		`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16","joinSubnet":"100.65.0.0/16,fd99::/64",`+
		`"transitSubnet":"100.88.0.0/16,fd97::/64","allowPersistentIPs":true}`, b)
	if d.Spec.Config != want {
		t.Errorf("config %s\nwant   %s", d.Spec.Config, want)
	}
	if owner := metav1.GetControllerOf(d); owner == nil || owner.UID != c.UID || owner.Kind != "ClusterUserDefinedNetwork" {
		t.Errorf("owner %+v", owner)
	}
	s.delete(c)
	s.gone(c)
	s.gone(named(a, "shared"))
	s.gone(named(b, "shared"))
}

func TestOneNamespaceDoesNotHoldUpOthers(t *testing.T) {
	s := newSite(t)
	good := s.namespace(primary("tenant", "mixed"))
	plain := s.namespace(map[string]string{"tenant": "mixed"})
	c := cudn("mixed", tenants("mixed"), layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, fmt.Sprintf("False NetworkAttachmentDefinitionSyncError namespace %[1]s: invalid primary network state for "+
		"namespace %[1]q: a valid primary user defined network or network attachment definition custom resource, and required namespace label %[2]q "+
		"must both be present", plain, ovnv1.PrimaryNamespaceLabel))
	s.definition(good, "mixed")
}

func TestSelectorChanges(t *testing.T) {
	s := newSite(t)
	a := s.namespace(map[string]string{"tenant": "red"})
	b := s.namespace(map[string]string{"tenant": "green"})
	c := cudn("moving", tenants("red"), layer2(ovnv1.Secondary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(a))

	change(s, c, func(c *ovnv1.ClusterUserDefinedNetwork) { c.Spec.NamespaceSelector = tenants("green") })
	s.says(c, ovnv1.NetworkCreated, existsIn(b))
	s.gone(named(a, "moving"))

	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b}}
	pod := s.pod(b, "user", "moving")
	change(s, ns, func(ns *corev1.Namespace) { delete(ns.Labels, "tenant") })
	s.says(c, ovnv1.NetworkCreated, fmt.Sprintf(
		"False NetworkAttachmentDefinitionSyncError namespace %[1]s: network in use by the following pods: [%[1]s/user]", b))
	s.delete(pod)
	s.says(c, ovnv1.NetworkCreated, existsIn(""))
	s.gone(named(b, "moving"))
}

func TestSelectorThatCannotBeUnderstoodTakesNothingAway(t *testing.T) {
	s := newSite(t)
	a := s.namespace(map[string]string{"tenant": "odd"})
	c := cudn("odd", tenants("odd"), layer2(ovnv1.Secondary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(a))
	change(s, c, func(c *ovnv1.ClusterUserDefinedNetwork) {
		c.Spec.NamespaceSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tenant", Operator: "Near"}}}
	})
	s.says(c, ovnv1.NetworkCreated, fmt.Sprintf("False NetworkAttachmentDefinitionSyncError namespace %s: %q is not a valid label selector operator", a, "Near"))
	s.definition(a, "odd")
}

func TestNamespaceEnds(t *testing.T) {
	s := newSite(t)
	a := s.namespace(primary("tenant", "ending"))
	c := cudn("ending", tenants("ending"), layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(a))
	pod := s.pod(a, "last", "ending")
	s.delete(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a}})
	s.says(c, ovnv1.NetworkCreated, fmt.Sprintf(
		"False NetworkAttachmentDefinitionSyncError namespace %[1]s: network in use by the following pods: [%[1]s/last]", a))
	s.delete(pod)
	s.gone(named(a, "ending"))
	s.says(c, ovnv1.NetworkCreated, existsIn(""))
	s.finalize(a)
}

func TestDeletionOfClusterNetworkIsTold(t *testing.T) {
	s := newSite(t)
	a, b := s.pair(map[string]string{"tenant": "told"})
	c := cudn("told", tenants("told"), layer2(ovnv1.Secondary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(a+", "+b))
	s.kill()
	for _, ns := range []string{a, b} {
		d := s.definition(ns, "told")
		d.Finalizers = append(d.Finalizers, "example.com/hold")
		if err := s.client.Update(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	s.delete(c)
	s.start()
	s.says(c, ovnv1.NetworkCreated, fmt.Sprintf(
		"False NetworkAttachmentDefinitionDeleted NetworkAttachmentDefinition are being deleted: [%s/told %s/told]", a, b))
}

// A controller that was away finds what changed meanwhile.
func TestRestart(t *testing.T) {
	s := newSite(t)
	a := s.namespace(primary("tenant", "restart"))
	c := cudn("restart", tenants("restart"), layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(c)
	s.says(c, ovnv1.NetworkCreated, existsIn(a))
	before := s.definition(a, "restart")
	s.kill()
	b := s.namespace(primary("tenant", "restart"))
	s.start()
	s.until("the new namespace has the network", func() error {
		return s.client.Get(t.Context(), client.ObjectKey{Namespace: b, Name: "restart"}, named(b, "restart"))
	})
	after := s.definition(a, "restart")
	if before.ResourceVersion != after.ResourceVersion {
		t.Error("a definition that was right has been written again")
	}
	if errs := errors.Join(s.client.Get(t.Context(), client.ObjectKeyFromObject(c), c)); errs != nil {
		t.Fatal(errs)
	}
}
