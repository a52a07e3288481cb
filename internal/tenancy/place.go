package tenancy

import (
	"fmt"
	"slices"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// place is what is known of one namespace that a network is, or was, meant for.
type place struct {
	namespace   *corev1.Namespace
	definitions []nadv1.NetworkAttachmentDefinition // all of the namespace
	users       []string                            // pods ("namespace/name") on the definition of the network's name
}

// state is how far a network is in a place.
type state int

const (
	absent  state = iota
	present       // the definition exists
	going         // the definition is being deleted
)

// write changes one definition. Without from it is made, without to it is deleted.
type write struct {
	from, to *nadv1.NetworkAttachmentDefinition
}

// outcome is what follows for one place. Once the writes are carried out, the state holds.
type outcome struct {
	writes []write
	state  state
	err    error // why the network is not as it should be there
}

// final tells whether a write makes or ends something, which must not be decided on old knowledge.
func (o outcome) final() bool {
	return slices.ContainsFunc(o.writes, func(w write) bool { return w.from == nil || w.to == nil })
}

// own is the definition of the network's name in the place, and whether it is the network's.
func (p place) own(w wish) (d *nadv1.NetworkAttachmentDefinition, ours bool) {
	for i := range p.definitions {
		if p.definitions[i].Name == w.object.GetName() {
			d = &p.definitions[i]
			return d, metav1.IsControlledBy(d, w.object)
		}
	}
	return nil, false
}

// step decides what happens to a network in one namespace.
func step(w wish, p place) outcome {
	d, ours := p.own(w)
	if !w.wantedIn(p.namespace) {
		if !ours {
			return outcome{}
		}
		o := leave(d, p.users)
		if o.state == going && !w.leaving() {
			o.state = absent // it need not be awaited
		}
		return o
	}
	if ours && d.DeletionTimestamp != nil {
		return leave(d, p.users) // made anew once it is gone
	}
	if err := obstacle(w, p); err != nil {
		if !ours {
			return outcome{err: err}
		}
		return outcome{state: present, err: err}
	}
	return keep(w, p.namespace.Name, d)
}

// keep makes a definition, or makes it again what it should be.
func keep(w wish, namespace string, d *nadv1.NetworkAttachmentDefinition) outcome {
	wanted, err := w.definition(namespace, d)
	if err != nil {
		return outcome{err: err}
	}
	o := outcome{state: present}
	if d == nil {
		o.writes = []write{{to: wanted}}
	} else if !equality.Semantic.DeepEqual(d, wanted) {
		o.writes = []write{{from: d, to: wanted}}
	}
	return o
}

// leave lets a definition go once no pod uses it.
func leave(d *nadv1.NetworkAttachmentDefinition, users []string) outcome {
	if len(users) > 0 {
		return outcome{state: present, err: fmt.Errorf("network in use by the following pods: %v", users)}
	}
	o := outcome{state: going}
	unprotected := d.DeepCopy()
	unprotected.Finalizers = slices.DeleteFunc(unprotected.Finalizers, func(f string) bool { return f == ovnv1.Finalizer })
	if len(unprotected.Finalizers) != len(d.Finalizers) {
		o.writes = append(o.writes, write{from: d, to: unprotected})
	}
	if d.DeletionTimestamp == nil {
		o.writes = append(o.writes, write{from: unprotected})
	}
	return o
}

// obstacle is why a network cannot be in a place.
func obstacle(w wish, p place) error {
	if w.err != nil {
		return w.err
	}
	name, namespace := w.object.GetName(), p.namespace.Name
	if d, ours := p.own(w); d != nil && !ours {
		return fmt.Errorf("foreign NetworkAttachmentDefinition with the desired name already exist [%s/%s]", namespace, name)
	}
	if !w.primary() {
		return nil
	}
	if _, labelled := p.namespace.Labels[ovnv1.PrimaryNamespaceLabel]; !labelled {
		return fmt.Errorf("invalid primary network state for namespace %q: a valid primary user defined network or network attachment "+
			"definition custom resource, and required namespace label %q must both be present", namespace, ovnv1.PrimaryNamespaceLabel)
	}
	for _, other := range p.definitions {
		if other.Name != name && primaryDefinition(&other) {
			return fmt.Errorf("primary network already exist in namespace %q: %q", namespace, other.Name)
		}
	}
	return nil
}

// primaryDefinition tells whether a definition names a primary network. One that cannot be understood does not.
func primaryDefinition(d *nadv1.NetworkAttachmentDefinition) bool {
	n, err := netconf.Parse(d.Namespace+"/"+d.Name, d.Spec.Config)
	return err == nil && n.Role == podnetworks.Primary
}
