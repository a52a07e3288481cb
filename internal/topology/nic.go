package topology

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/ovn/nb"
)

// NIC is a virtual machine's interface whose tap takes the logical port itself.
type NIC struct {
	Namespace string
	VMI       string
	Name      string
	Network   Network
	MAC       net.HardwareAddr
	IPs       []netip.Prefix
	Hostname  string
	// Chassis is the machine's node; while it moves, the node it leaves and the one it goes to; empty when it is on none.
	Chassis []string
}

// Attachment is a pod's own interface on a network.
type Attachment struct {
	Key       string // of the pod's annotation
	Namespace string
	Pod       string
	UID       types.UID
	Node      string
	Network   Network
	MAC       net.HardwareAddr
	IPs       []netip.Prefix
}

// NICRows are the port of a machine's interface.
func NICRows(n NIC) []nb.Row {
	port := n.Network.port(NICPort(n.Namespace, n.VMI, n.Name), n.MAC, n.IPs)
	port.ExternalIDs["namespace"], port.ExternalIDs["vm"], port.ExternalIDs["nic"] = n.Namespace, n.VMI, n.Name
	port.Options = map[string]string{}
	if len(n.Chassis) > 0 {
		// Without spaces: OVN 23.03 takes them for part of a name.
		port.Options["requested-chassis"] = strings.Join(n.Chassis, ",")
	}
	if len(n.Chassis) > 1 {
		// The port is silent at its new place until the guest announces itself there, which QEMU does when the guest goes on.
		port.Options["activation-strategy"] = "rarp"
	}
	n.Network.answer(port, n.Namespace, n.Hostname, n.IPs)
	return []nb.Row{n.Network.guarded(port, "")}
}

// AttachmentRows are the port of a pod's interface.
func AttachmentRows(a Attachment) []nb.Row {
	port := a.Network.port(AttachmentPort(a.Key, a.Namespace, a.Pod), a.MAC, a.IPs)
	port.ExternalIDs["namespace"], port.ExternalIDs["pod"], port.ExternalIDs["k8s.ovn.org/nad"] = a.Namespace, "true", a.Key
	port.Options = map[string]string{"requested-chassis": a.Node, "iface-id-ver": string(a.UID)}
	return []nb.Row{a.Network.guarded(port, a.Node)}
}

// port lets nothing through but the addresses that were given. In a network that gives none, any address may be behind the MAC.
func (n Network) port(name string, mac net.HardwareAddr, ips []netip.Prefix) *nb.LogicalSwitchPort {
	var own []netip.Addr
	if len(n.Subnets) > 0 {
		for _, ip := range ips {
			own = append(own, ip.Addr())
		}
	}
	addresses := portAddresses(mac, own)
	security := []string{addresses + " " + linkLocal}
	if len(own) == 0 {
		// The MAC alone would let every frame through but, in OVN 23.03.1, neighbour advertisements (see linkLocal).
		security = []string{addresses, addresses + " 0.0.0.0/0 ::/0"}
	}
	return &nb.LogicalSwitchPort{Name: name, Addresses: []string{addresses}, PortSecurity: security, ExternalIDs: n.ids()}
}

// answer lets DHCP answer the port.
func (n Network) answer(port *nb.LogicalSwitchPort, namespace, hostname string, ips []netip.Prefix) {
	for _, subnet := range n.Subnets {
		if !slices.ContainsFunc(ips, func(ip netip.Prefix) bool { return subnet.Contains(ip.Addr()) }) {
			continue
		}
		row := nb.Ref{Table: nb.DHCPOptionsTable, Key: n.dhcpKey(namespace, subnet)}.UUID()
		if subnet.Addr().Is4() {
			port.Dhcpv4Options = &row
			if hostname != "" {
				port.Options["hostname"] = quote(hostname)
			}
		} else {
			port.Dhcpv6Options = &row
		}
	}
}

// guarded puts a port where addresses are given among those that may not pretend to give any. Machines are on no layer3 network, so
// their node does not matter.
func (n Network) guarded(port *nb.LogicalSwitchPort, node string) nb.Row {
	row := switchPort(n.switchOf(node), port)
	if len(n.Subnets) == 0 {
		return row
	}
	return row.In(guardGroup().Ref, "ports")
}
