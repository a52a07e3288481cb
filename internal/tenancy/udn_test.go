package tenancy

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
)

const isCreated = "True NetworkAttachmentDefinitionCreated NetworkAttachmentDefinition has been created"

func TestNetworkOfNamespace(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16", "fd00:20::/64"))
	u.Labels = map[string]string{"team": "red"}
	u.Annotations = map[string]string{"note": "kept", "k8s.ovn.org/own": "not copied", corev1.LastAppliedConfigAnnotation: "{}"}
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, isCreated)

	d := s.definition(ns, "net")
	wantConfig := fmt.Sprintf(`{"cniVersion":"1.1.0","type":"ovn-k8s-cni-overlay","name":"%[1]s_net","netAttachDefName":"%[1]s/net",`+
		`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64","joinSubnet":"100.65.0.0/16,fd99::/64",`+
		`"transitSubnet":"100.88.0.0/16,fd97::/64","allowPersistentIPs":true}`, ns)
	if d.Spec.Config != wantConfig {
		t.Errorf("config %s\nwant   %s", d.Spec.Config, wantConfig)
	}
	if got := fmt.Sprint(d.Labels, d.Annotations, d.Finalizers); got != fmt.Sprint(
		map[string]string{ovnv1.NetworkLabel: "", "team": "red"}, map[string]string{"note": "kept"}, []string{ovnv1.Finalizer}) {
		t.Errorf("metadata %s", got)
	}
	owner := metav1.GetControllerOf(d)
	if owner == nil || owner.UID != u.UID || owner.Kind != "UserDefinedNetwork" || owner.APIVersion != "k8s.ovn.org/v1" || !*owner.BlockOwnerDeletion {
		t.Errorf("owner %+v", owner)
	}
	if len(u.Finalizers) != 1 || u.Finalizers[0] != ovnv1.Finalizer {
		t.Errorf("finalizers of the network: %v", u.Finalizers)
	}
	if managers := managersOf(s, u); !managers["user-defined-network-controller"] {
		t.Errorf("field managers %v", managers)
	}
}

func managersOf(s *site, o client.Object) map[string]bool {
	s.t.Helper()
	if err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		s.t.Fatal(err)
	}
	managers := map[string]bool{}
	for _, m := range o.GetManagedFields() {
		if m.Subresource == "status" {
			managers[m.Manager] = true
		}
	}
	return managers
}

func TestDefinitionsAreHealed(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(nil)
	u := udn(ns, "data", layer2(ovnv1.Secondary, "10.30.0.0/16"))
	s.create(u)
	d := s.definition(ns, "data")
	original := d.Spec.Config

	change(s, d, func(d *nadv1.NetworkAttachmentDefinition) {
		d.Spec.Config = "{}"
		d.Labels = nil
		d.Finalizers = nil
		d.Annotations = map[string]string{"k8s.ovn.org/network-id": "7", "stray": ""}
	})
	s.until("the definition is as it was", func() error {
		d := s.definition(ns, "data")
		if d.Spec.Config != original || len(d.Labels) != 1 || len(d.Finalizers) != 1 || len(d.Annotations) != 1 || d.Annotations["k8s.ovn.org/network-id"] != "7" {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	first := s.definition(ns, "data").UID
	s.delete(named(ns, "data"))
	s.until("the definition is made anew", func() error {
		if s.definition(ns, "data").UID == first {
			return errors.New("it is the same one")
		}
		return nil
	})
	s.says(u, ovnv1.NetworkCreated, isCreated)
}

func TestMetadataFollowsTheNetwork(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(nil)
	u := udn(ns, "data", layer2(ovnv1.Secondary, "10.30.0.0/16"))
	u.Labels = map[string]string{"old": ""}
	s.create(u)
	s.definition(ns, "data")
	change(s, u, func(u *ovnv1.UserDefinedNetwork) { u.Labels = map[string]string{"new": ""} })
	s.until("the labels follow", func() error {
		d := s.definition(ns, "data")
		if _, ok := d.Labels["new"]; !ok || len(d.Labels) != 2 {
			return fmt.Errorf("labels %v", d.Labels)
		}
		return nil
	})
}

func TestForeignDefinition(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(nil)
	d := named(ns, "net")
	d.Spec.Config = `{"type":"bridge"}`
	s.create(d)
	u := udn(ns, "net", layer2(ovnv1.Secondary, "10.30.0.0/16"))
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, fmt.Sprintf(
		"False SyncError foreign NetworkAttachmentDefinition with the desired name already exist [%s/net]", ns))
	s.delete(d)
	s.says(u, ovnv1.NetworkCreated, isCreated)
}

func TestSecondPrimaryNetwork(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	first, second := udn(ns, "one", layer2(ovnv1.Primary, "10.20.0.0/16")), udn(ns, "two", layer2(ovnv1.Primary, "10.21.0.0/16"))
	s.create(first)
	s.says(first, ovnv1.NetworkCreated, isCreated)
	s.create(second)
	s.says(second, ovnv1.NetworkCreated, fmt.Sprintf("False SyncError primary network already exist in namespace %q: %q", ns, "one"))
	secondary := udn(ns, "three", layer2(ovnv1.Secondary, "10.22.0.0/16"))
	s.create(secondary)
	s.says(secondary, ovnv1.NetworkCreated, isCreated)
	s.delete(first)
	s.says(second, ovnv1.NetworkCreated, isCreated)
}

// Whether there is a primary network already must be asked where the answer is: in the API server, not in a cache.
func TestManyPrimaryNetworksAtOnce(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary("tenant", "race"))
	for i := range 10 {
		s.create(udn(ns, fmt.Sprintf("n%d", i), layer2(ovnv1.Primary, "10.20.0.0/16")))
		s.create(cudn(fmt.Sprintf("c%d", i), tenants("race"), layer2(ovnv1.Primary, "10.20.0.0/16")))
	}
	s.until("all networks have been looked at", func() error {
		var list ovnv1.UserDefinedNetworkList
		var clusters ovnv1.ClusterUserDefinedNetworkList
		if err := errors.Join(s.client.List(t.Context(), &list), s.client.List(t.Context(), &clusters)); err != nil {
			return err
		}
		for _, u := range list.Items {
			if len(u.Status.Conditions) == 0 {
				return fmt.Errorf("%s has no condition", u.Name)
			}
		}
		for _, c := range clusters.Items {
			if len(c.Status.Conditions) == 0 {
				return fmt.Errorf("%s has no condition", c.Name)
			}
		}
		return nil
	})
	var all nadv1.NetworkAttachmentDefinitionList
	if err := s.client.List(t.Context(), &all, client.InNamespace(ns)); err != nil || len(all.Items) != 1 {
		t.Errorf("%d primary networks in one namespace, %v", len(all.Items), err)
	}
}

func TestNamespaceWithoutLabel(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(nil)
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, fmt.Sprintf("False SyncError invalid primary network state for namespace %q: a valid primary user defined "+
		"network or network attachment definition custom resource, and required namespace label %q must both be present", ns, ovnv1.PrimaryNamespaceLabel))
	if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "net"}, named(ns, "net")); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the definition exists: %v", err)
	}
	s.until("the user is told", func() error { return told(s, ns, "SyncError", "invalid primary network state") })
}

// told tells whether an event of a namespace says something.
func told(s *site, namespace, reason, text string) error {
	var list eventsv1.EventList
	if err := s.client.List(s.t.Context(), &list, client.InNamespace(namespace)); err != nil {
		return err
	}
	for _, e := range list.Items {
		if e.Type == corev1.EventTypeWarning && e.Reason == reason && strings.Contains(e.Note, text) {
			return nil
		}
	}
	return fmt.Errorf("no event %s with %q among %d", reason, text, len(list.Items))
}

func TestRangesOfTheCluster(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.128.0.0/16"))
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, `False SyncError subnet "10.128.0.0/16" overlaps cluster subnet "10.128.0.0/14"`)
}

func TestNetworkInUse(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, isCreated)
	a, b := s.pod(ns, "a", "net"), s.pod(ns, "b", "net")
	s.delete(u)
	s.says(u, ovnv1.NetworkCreated, fmt.Sprintf("False SyncError network in use by the following pods: [%[1]s/a %[1]s/b]", ns))
	s.delete(a)
	s.says(u, ovnv1.NetworkCreated, fmt.Sprintf("False SyncError network in use by the following pods: [%s/b]", ns))
	s.definition(ns, "net")
	s.delete(b)
	s.gone(u)
	s.gone(named(ns, "net"))
}

func TestDefinitionDeletedWhileInUse(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(u)
	first := s.definition(ns, "net").UID
	a := s.pod(ns, "a", "net")
	s.says(u, ovnv1.NetworkCreated, isCreated)
	s.delete(named(ns, "net"))
	s.says(u, ovnv1.NetworkCreated, fmt.Sprintf("False SyncError network in use by the following pods: [%s/a]", ns))
	s.delete(a)
	s.says(u, ovnv1.NetworkCreated, isCreated)
	if s.definition(ns, "net").UID == first {
		t.Error("the definition was not made anew")
	}
}

// Somebody else's finalizer on the definition holds the network, and the condition says that it goes.
func TestDeletionIsTold(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(nil)
	u := udn(ns, "data", layer2(ovnv1.Secondary, "10.20.0.0/16"))
	s.create(u)
	s.says(u, ovnv1.NetworkCreated, isCreated)
	s.kill() // the controller would take the finalizer off again
	d := s.definition(ns, "data")
	d.Finalizers = append(d.Finalizers, "example.com/hold")
	if err := s.client.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	s.delete(u)
	s.start()
	s.says(u, ovnv1.NetworkCreated, "False NetworkAttachmentDefinitionDeleted NetworkAttachmentDefinition is being deleted")
	change(s, d, func(d *nadv1.NetworkAttachmentDefinition) { d.Finalizers = nil })
	s.gone(u)
}

// A network goes when the overlay has nothing of it any more, also when the controller was killed in between.
func TestNetworkThatIsStillCarried(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary("tenant", "held"))
	u := udn(ns, "data", layer2(ovnv1.Secondary, "10.20.0.0/16"))
	c := cudn("held", tenants("held"), layer2(ovnv1.Primary, "10.21.0.0/16"))
	s.carried.Store(ns+"_data", true)
	s.carried.Store("cluster_udn_held", true)
	for _, o := range []client.Object{u, c} {
		s.create(o)
		s.definition(ns, o.GetName())
		s.delete(o)
		s.gone(named(ns, o.GetName()))
	}
	s.says(u, ovnv1.NetworkCreated, "False SyncError cannot remove UDN, controller for network "+ns+"_data is still running")
	s.says(c, ovnv1.NetworkCreated, "False NetworkAttachmentDefinitionSyncError cannot remove UDN, controller for network cluster_udn_held is still running")
	s.kill()
	s.start()
	s.says(u, ovnv1.NetworkCreated, "False SyncError cannot remove UDN, controller for network "+ns+"_data is still running")
	if len(u.Finalizers) != 1 || u.Finalizers[0] != ovnv1.Finalizer {
		t.Errorf("finalizers %v", u.Finalizers)
	}
	s.carried.Clear()
	s.gone(u)
	s.gone(c)
}

func TestAllocation(t *testing.T) {
	s := newSite(t)
	ns := s.namespace(primary())
	u := udn(ns, "net", layer2(ovnv1.Primary, "10.20.0.0/16"))
	s.create(u)
	d := s.definition(ns, "net")
	change(s, d, func(d *nadv1.NetworkAttachmentDefinition) { d.Annotations = map[string]string{networkID: "3"} })
	const well = "True NetworkAllocationSucceeded Network allocation succeeded for all synced nodes."
	s.says(u, ovnv1.NetworkAllocationSucceeded, well)
	if managers := managersOf(s, u); !managers["NetworkClusterController"] {
		t.Errorf("field managers %v", managers)
	}
	s.tenancy.Report("network/"+ns+"_net", errors.New("no room"))
	s.says(u, ovnv1.NetworkAllocationSucceeded,
		"False InternalError Network allocation failed for at least one node: all, check UDN events for more info.")
	s.until("the failure is told", func() error { return told(s, ns, "NetworkAllocationFailed", "Error occurred for node all: no room") })
	s.tenancy.Report("network/"+ns+"_net", nil)
	s.says(u, ovnv1.NetworkAllocationSucceeded, well)
	s.says(u, ovnv1.NetworkCreated, isCreated)
}
