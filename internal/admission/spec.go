package admission

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

// checker holds what the rules of one VMI spec look at and what they found.
type checker struct {
	Causes
	policy   Policy
	root     *field.Path // of the spec: "spec" or "spec.template.spec"
	spec     *virtv1.VirtualMachineInstanceSpec
	creating bool // the object is being created; retired features are refused only then
}

// ValidateSpec applies the rules that a VMI and the templates of VMIs share. creating is false on updates, so that an object
// from before a feature was retired can still be edited.
func ValidateSpec(root *field.Path, spec *virtv1.VirtualMachineInstanceSpec, policy Policy, creating bool) Causes {
	c := &checker{policy: policy, root: root, spec: spec, creating: creating}
	for _, rules := range []func(){
		c.hostname, c.cpuSockets,
		c.networks, c.bindings, c.claims, c.names, c.interfaces,
		c.bootOrder, c.probes, c.disks, c.volumes, c.accessCredentials, c.dns, c.evictionStrategy,
	} {
		rules()
	}
	return c.Causes
}

// iface is the path of an interface, net that of a network.
func (c *checker) iface(i int) *field.Path {
	return c.root.Child("domain", "devices", "interfaces").Index(i)
}

func (c *checker) net(i int) *field.Path { return c.root.Child("networks").Index(i) }

// network is the network that an interface connects to, nil when there is none.
func (c *checker) network(name string) *virtv1.Network {
	i := slices.IndexFunc(c.spec.Networks, func(n virtv1.Network) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &c.spec.Networks[i]
}

func (c *checker) onPod(iface virtv1.Interface) bool {
	n := c.network(iface.Name)
	return n != nil && n.Pod != nil
}

// elsewhere reports that the interface has a network which is not the pod network. Without a network another rule speaks.
func (c *checker) elsewhere(iface virtv1.Interface) bool {
	n := c.network(iface.Name)
	return n != nil && n.Pod == nil
}

// primary reports that a network takes the pod's main interface.
func primary(n *virtv1.Network) bool {
	return n != nil && (n.Pod != nil || n.Multus != nil && n.Multus.Default)
}
