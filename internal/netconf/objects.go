package netconf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/podnetworks"
)

// NameInNamespace is the name of a UserDefinedNetwork's network. An underscore occurs in no name of Kubernetes, so that networks
// of namespaces and of the cluster never meet.
func NameInNamespace(namespace, name string) string { return namespace + "_" + name }

// NameInCluster is the name of a ClusterUserDefinedNetwork's network.
func NameInCluster(name string) string { return clusterPrefix + name }

const clusterPrefix = "cluster_udn_"

// AskedBy is the object that a network's name belongs to: a UserDefinedNetwork, or without a namespace a
// ClusterUserDefinedNetwork. Other names belong to whoever takes them.
func AskedBy(network string) (namespace, name string, ok bool) {
	if name, clusterly := strings.CutPrefix(network, clusterPrefix); clusterly {
		return "", name, true
	}
	namespace, name, composed := strings.Cut(network, "_")
	return namespace, name, composed && len(validation.IsDNS1123Label(namespace)) == 0 && len(validation.IsDNS1123Subdomain(name)) == 0
}

// MadeFor is the name of the network whose object made a definition; none when it is made by hand. The API server lets nobody
// name such an object as a definition's owner who could not change the object itself.
func MadeFor(definition metav1.Object) string {
	owner := metav1.GetControllerOf(definition)
	if owner == nil || owner.Name != definition.GetName() || !strings.HasPrefix(owner.APIVersion, ovnv1.GroupVersion.Group+"/") {
		return ""
	}
	if owner.Kind == "ClusterUserDefinedNetwork" {
		return NameInCluster(owner.Name)
	}
	return NameInNamespace(definition.GetNamespace(), owner.Name)
}

// OfNamespace is the network that a UserDefinedNetwork asks for.
func OfNamespace(u *ovnv1.UserDefinedNetwork) (Network, error) {
	return fromSpec(NameInNamespace(u.Namespace, u.Name), ovnv1.NetworkSpec{Topology: u.Spec.Topology, Layer2: u.Spec.Layer2, Layer3: u.Spec.Layer3})
}

// OfCluster is the network that a ClusterUserDefinedNetwork asks for.
func OfCluster(c *ovnv1.ClusterUserDefinedNetwork) (Network, error) {
	return fromSpec(NameInCluster(c.Name), c.Spec.Network)
}

func fromSpec(name string, spec ovnv1.NetworkSpec) (Network, error) {
	r := reader{n: Network{Name: name}}
	switch {
	case spec.Layer2 != nil:
		r.layer2(spec.Layer2)
	case spec.Layer3 != nil:
		r.layer3(spec.Layer3)
	case spec.Localnet != nil:
		r.localnet(spec.Localnet)
	default:
		return Network{}, fmt.Errorf("topology %s needs the field of its name in spec", spec.Topology)
	}
	if r.err != nil {
		return Network{}, r.err
	}
	n, err := r.n.withDefaults()
	if err != nil {
		return Network{}, err
	}
	return n, n.validate()
}

// reader turns fields of the API into a network; it keeps the first error.
type reader struct {
	n   Network
	err error
}

func (r *reader) layer2(c *ovnv1.Layer2Config) {
	r.n.Topology, r.n.Role, r.n.MTU = Layer2, role(c.Role), int(c.MTU)
	r.n.Subnets = r.subnets(c.Subnets)
	r.n.Reserved = r.cidrs(c.ReservedSubnets)
	r.n.Infrastructure = r.cidrs(c.InfrastructureSubnets)
	for _, ip := range c.DefaultGatewayIPs {
		address, err := netip.ParseAddr(string(ip))
		r.fail(err)
		r.n.Gateways = append(r.n.Gateways, address)
	}
	r.n.Join = r.cidrs(c.JoinSubnets)
	r.n.Persistent = persistent(c.IPAM)
}

func (r *reader) layer3(c *ovnv1.Layer3Config) {
	r.n.Topology, r.n.Role, r.n.MTU = Layer3, role(c.Role), int(c.MTU)
	for _, s := range c.Subnets {
		subnet := Subnet{CIDR: r.cidr(s.CIDR)}
		wished := ""
		if s.HostSubnet != 0 {
			wished = strconv.Itoa(int(s.HostSubnet))
		}
		var err error
		subnet.HostBits, err = hostBits(subnet.CIDR, wished)
		r.fail(err)
		r.n.Subnets = append(r.n.Subnets, subnet)
	}
	r.n.Join = r.cidrs(c.JoinSubnets)
}

func (r *reader) localnet(c *ovnv1.LocalnetConfig) {
	r.n.Topology, r.n.Role, r.n.MTU = Localnet, role(c.Role), int(c.MTU)
	r.n.Subnets = r.subnets(c.Subnets)
	r.n.Excluded = r.cidrs(c.ExcludeSubnets)
	r.n.Physical = c.PhysicalNetworkName
	r.n.Persistent = persistent(c.IPAM)
	if c.VLAN != nil && c.VLAN.Access != nil {
		r.n.VLAN = int(c.VLAN.Access.ID)
	}
}

func (r *reader) subnets(list []ovnv1.CIDR) []Subnet {
	var subnets []Subnet
	for _, c := range r.cidrs(list) {
		subnets = append(subnets, Subnet{CIDR: c})
	}
	return subnets
}

func (r *reader) cidrs(list []ovnv1.CIDR) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, c := range list {
		prefixes = append(prefixes, r.cidr(c))
	}
	return prefixes
}

// cidr reads a range; host bits say nothing about it.
func (r *reader) cidr(c ovnv1.CIDR) netip.Prefix {
	p, err := netip.ParsePrefix(string(c))
	r.fail(err)
	return p.Masked()
}

func (r *reader) fail(err error) {
	if err != nil && r.err == nil {
		r.err = err
	}
}

func role(r ovnv1.Role) podnetworks.Role {
	if r == ovnv1.Primary {
		return podnetworks.Primary
	}
	return podnetworks.Secondary
}

func persistent(c *ovnv1.IPAMConfig) bool { return c != nil && c.Lifecycle == ovnv1.IPAMPersistent }
