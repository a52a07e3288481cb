package v1alpha1

import "strings"

// Owner is for whom an address is kept. A pod's is kept until the pod is gone; a virtual machine's stays through restarts and
// migrations, whose pods share it; a node's is that of its agent, on a network of its own.
type Owner struct {
	Kind            OwnerKind
	Namespace, Name string // a node has no namespace
}

// OwnerKind is the kind of an owner.
type OwnerKind string

// Kinds of owners.
const (
	OwnerPod     OwnerKind = ""
	OwnerMachine OwnerKind = "vm"
	OwnerNode    OwnerKind = "node"
)

// String is the owner as a podref says it. A pod's is NAMESPACE/NAME, as published.
func (o Owner) String() string {
	if o.Kind == OwnerPod {
		return o.Namespace + "/" + o.Name
	}
	return strings.Join([]string{string(o.Kind), o.Namespace, o.Name}, "/")
}

// ParseOwner reads a podref. ok is false for one that none of us has written.
func ParseOwner(podRef string) (o Owner, ok bool) {
	parts := strings.Split(podRef, "/")
	switch {
	case len(parts) == 2:
		o = Owner{OwnerPod, parts[0], parts[1]}
	case len(parts) == 3:
		o = Owner{OwnerKind(parts[0]), parts[1], parts[2]}
	}
	named := o.Name != "" && (o.Namespace == "") == (o.Kind == OwnerNode)
	return o, named && (o.Kind == OwnerPod || o.Kind == OwnerMachine || o.Kind == OwnerNode)
}
