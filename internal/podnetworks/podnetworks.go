// Package podnetworks reads and writes the two annotations by which the network controller tells a node's agent what it
// decided: the addresses of a pod and the slices of a node. The names and shapes are those of OVN-Kubernetes, because users
// and their tools read them. The package must not decide anything.
package podnetworks

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
)

const (
	// PodAnnotation holds a JSON object with one entry per network of the pod.
	PodAnnotation = "k8s.ovn.org/pod-networks"
	// NodeAnnotation holds a JSON object: network -> list of the node's slices of that network's ranges.
	NodeAnnotation = "k8s.ovn.org/node-subnets"
	// Default is the key of the cluster's default network in both.
	Default = "default"
	// PrimaryInterface is the pod's device on a tenant's primary network.
	PrimaryInterface = "ovn-udn1"
)

// Role says what a network is for its pod.
type Role string

const (
	Primary             Role = "primary"               // default route and services
	Secondary           Role = "secondary"             // connected routes only
	InfrastructureLocal Role = "infrastructure-locked" // default network of a pod whose primary network is a tenant's
)

// Network is how a pod is connected to one network.
type Network struct {
	IPs      []netip.Prefix // address with the subnet's length; the first family is the primary one
	MAC      net.HardwareAddr
	Gateways []netip.Addr
	Routes   []Route
	MTU      int // bytes
	Role     Role
	// LinkLocalGateway is the router's link-local address, where IPv6 routes of advertisements lead; invalid when there is none.
	LinkLocalGateway netip.Addr
	// Name is the network's own name, which several attachments may share; empty on the default network.
	Name string
	// Port is the logical port's name; empty on the default network, where it follows from the pod's name.
	Port string
	// Interface is the device's name in the pod; empty is the name that the runtime chose (eth0).
	Interface string
	// Tap says that a virtual machine's tap takes the port: the pod itself gets no device.
	Tap bool
}

// Route is one route of the pod beside the default route through Gateways.
type Route struct {
	Dest    netip.Prefix `json:"dest"`
	NextHop netip.Addr   `json:"nextHop"`
}

// wire is the JSON shape of Network. The singular fields are the older form; they are present when there is exactly one.
type wire struct {
	IPs      []netip.Prefix `json:"ip_addresses"`
	MAC      string         `json:"mac_address"`
	Gateways []netip.Addr   `json:"gateway_ips,omitempty"`
	Routes   []Route        `json:"routes,omitempty"`
	IP       *netip.Prefix  `json:"ip_address,omitempty"`
	Gateway  *netip.Addr    `json:"gateway_ip,omitempty"`
	MTU      int            `json:"mtu,omitempty"`
	Role     Role           `json:"role,omitempty"`

	LinkLocalGateway *netip.Addr `json:"ipv6_lla_gateway_ip,omitempty"`
	// What other readers of the annotation do not know.
	Name      string `json:"network,omitempty"`
	Port      string `json:"port,omitempty"`
	Interface string `json:"interface,omitempty"`
	Tap       bool   `json:"tap,omitempty"`
}

// MarshalJSON writes the annotation's shape.
func (n Network) MarshalJSON() ([]byte, error) {
	w := wire{
		IPs: n.IPs, MAC: n.MAC.String(), Gateways: n.Gateways, Routes: n.Routes, MTU: n.MTU, Role: n.Role,
		Name: n.Name, Port: n.Port, Interface: n.Interface, Tap: n.Tap,
	}
	if n.LinkLocalGateway.IsValid() {
		w.LinkLocalGateway = &n.LinkLocalGateway
	}
	if len(n.IPs) == 1 {
		w.IP = &n.IPs[0]
	}
	if len(n.Gateways) == 1 {
		w.Gateway = &n.Gateways[0]
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads the annotation's shape.
func (n *Network) UnmarshalJSON(data []byte) error {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return fmt.Errorf("mac_address: %w", err)
	}
	*n = Network{
		IPs: w.IPs, MAC: mac, Gateways: w.Gateways, Routes: w.Routes, MTU: w.MTU, Role: w.Role,
		Name: w.Name, Port: w.Port, Interface: w.Interface, Tap: w.Tap,
	}
	if w.LinkLocalGateway != nil {
		n.LinkLocalGateway = *w.LinkLocalGateway
	}
	return nil
}

// ParsePod reads a pod's annotation; an absent one is an empty map.
func ParsePod(annotations map[string]string) (map[string]Network, error) {
	networks := map[string]Network{}
	text, ok := annotations[PodAnnotation]
	if !ok {
		return networks, nil
	}
	if err := json.Unmarshal([]byte(text), &networks); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", PodAnnotation, err)
	}
	return networks, nil
}

// FormatPod writes a pod's annotation.
func FormatPod(networks map[string]Network) (string, error) {
	data, err := json.Marshal(networks)
	return string(data), err
}

// ParseNode reads a node's annotation; an absent one is an empty map.
func ParseNode(annotations map[string]string) (map[string][]netip.Prefix, error) {
	subnets := map[string][]netip.Prefix{}
	text, ok := annotations[NodeAnnotation]
	if !ok {
		return subnets, nil
	}
	if err := json.Unmarshal([]byte(text), &subnets); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", NodeAnnotation, err)
	}
	return subnets, nil
}

// FormatNode writes a node's annotation.
func FormatNode(subnets map[string][]netip.Prefix) (string, error) {
	data, err := json.Marshal(subnets)
	return string(data), err
}

// MAC is the Ethernet address that belongs to an IP: 0a:58 and the four bytes of an IPv4 address, or the first four bytes
// of the hash of an IPv6 address.
func MAC(ip netip.Addr) net.HardwareAddr {
	if ip.Is4() {
		b := ip.As4()
		return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	sum := sha256.Sum256([]byte(ip.String()))
	return net.HardwareAddr{0x0a, 0x58, sum[0], sum[1], sum[2], sum[3]}
}

// InterfaceName is the name in the pod of the interface of a machine's secondary network: a hash of the network's name in the machine's
// specification, short enough for the kernel with the suffix "-nic".
func InterfaceName(network string) string {
	sum := sha256.Sum256([]byte(network))
	return "pod" + hex.EncodeToString(sum[:])[:11]
}

// Gateway is the router's address in a node's slice: the first.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Management is the node's own address in its slice: the second.
func Management(subnet netip.Prefix) netip.Addr { return Gateway(subnet).Next() }
