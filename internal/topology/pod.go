package topology

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// linkLocal is added to every port's security: OVN 23.03 compares the hop limit of a neighbour advertisement with 225
// instead of 255 for the port's own link-local address and so drops it (fixed 23.03.2), and it accepts the EUI-64
// link-local address only, which Windows and NetworkManager do not use.
const linkLocal = "fe80::/64"

// Pod is a pod's connection to the default network.
type Pod struct {
	Namespace string
	Name      string
	UID       types.UID
	Node      string
	Network   podnetworks.Network
	// OpenPorts are those that others of the default network reach although a tenant's network is the pod's primary one.
	OpenPorts []OpenPort
}

// PodRows are the pod's logical port.
func PodRows(p Pod) []nb.Row {
	var ips []netip.Addr
	for _, ip := range p.Network.IPs {
		ips = append(ips, ip.Addr())
	}
	addresses := portAddresses(p.Network.MAC, ips)
	return lockedLeg(p, switchPort(p.Node, &nb.LogicalSwitchPort{
		Name:         PodPort(p.Namespace, p.Name),
		Addresses:    []string{addresses},
		PortSecurity: []string{addresses + " " + linkLocal},
		Options: map[string]string{
			// Without it two chassis that both see the interface would fight over the port.
			"requested-chassis": p.Node,
			// A sandbox of an earlier pod of the same name is not taken for this one.
			"iface-id-ver": string(p.UID),
		},
		ExternalIDs: map[string]string{"namespace": p.Namespace, "pod": "true"},
	}))
}
