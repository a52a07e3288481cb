package tenancy

import (
	"maps"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// Kinds of the two objects.
const (
	namespaced = "UserDefinedNetwork"
	clusterly  = "ClusterUserDefinedNetwork"
)

// wish is a network that somebody asks for, by either kind of object.
type wish struct {
	object     client.Object
	kind       string
	name       string // of the network
	network    netconf.Network
	err        error // why there is no such network
	held       error // why it is not gone though no definition is left
	selector   labels.Selector
	conditions []metav1.Condition
}

func wishOfNamespace(u *ovnv1.UserDefinedNetwork) wish {
	w := wish{object: u, kind: namespaced, name: netconf.NameInNamespace(u.Namespace, u.Name), conditions: u.Status.Conditions}
	w.network, w.err = netconf.OfNamespace(u)
	w.selector = labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: u.Namespace})
	return w
}

func wishOfCluster(c *ovnv1.ClusterUserDefinedNetwork) wish {
	w := wish{object: c, kind: clusterly, name: netconf.NameInCluster(c.Name), conditions: c.Status.Conditions, selector: labels.Nothing()}
	if w.network, w.err = netconf.OfCluster(c); w.err != nil {
		return w
	}
	var selector labels.Selector
	if selector, w.err = metav1.LabelSelectorAsSelector(&c.Spec.NamespaceSelector); w.err == nil {
		w.selector = selector
	}
	return w
}

func (w wish) leaving() bool { return w.object.GetDeletionTimestamp() != nil }

func (w wish) primary() bool { return w.network.Role == podnetworks.Primary }

// wantedIn tells whether the network is asked for in a namespace. One that cannot be understood stays where it is.
func (w wish) wantedIn(ns *corev1.Namespace) bool {
	return !w.leaving() && ns.DeletionTimestamp == nil && (w.err != nil || w.selector.Matches(labels.Set(ns.Labels)))
}

// definition is the attachment definition in a namespace. What a network controller annotated on one that exists stays.
func (w wish) definition(namespace string, existing *nadv1.NetworkAttachmentDefinition) (*nadv1.NetworkAttachmentDefinition, error) {
	config, err := netconf.Render(w.network, namespace, w.object.GetName())
	if err != nil {
		return nil, err
	}
	d := &nadv1.NetworkAttachmentDefinition{}
	if existing != nil {
		d = existing.DeepCopy()
	}
	d.Name, d.Namespace = w.object.GetName(), namespace
	d.Labels = map[string]string{ovnv1.NetworkLabel: ""}
	maps.Copy(d.Labels, w.object.GetLabels())
	d.Annotations = w.annotations(d.Annotations)
	d.Finalizers = []string{ovnv1.Finalizer}
	d.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(w.object, ovnv1.GroupVersion.WithKind(w.kind))}
	d.Spec = nadv1.NetworkAttachmentDefinitionSpec{Config: config}
	return d, nil
}

// annotations are those of the object without what speaks of the object itself, and those of network controllers.
func (w wish) annotations(existing map[string]string) map[string]string {
	all := map[string]string{}
	for key, value := range w.object.GetAnnotations() {
		if !ofNetworkController(key) && key != corev1.LastAppliedConfigAnnotation {
			all[key] = value
		}
	}
	for key, value := range existing {
		if ofNetworkController(key) {
			all[key] = value
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

func ofNetworkController(key string) bool { return strings.HasPrefix(key, ovnv1.GroupVersion.Group) }
