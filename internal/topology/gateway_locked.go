package topology

import (
	"fmt"
	"slices"
	"strings"

	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// LockedGroup is the port group of the default-network legs of pods whose primary network is a tenant's: only their own
// node reaches them, for the kubelet's probes, and they reach nobody.
const LockedGroup = "locked_legs"

// Priorities of the rules for locked legs, above those of policies and below aclProbes.
const (
	aclLockedExcept = 30001
	aclLocked       = 30000
)

// OpenPort is a port of a locked leg that its pod opened to the default network.
type OpenPort struct {
	Protocol string // tcp, udp, sctp or icmp
	Port     uint16 // 0 with icmp
}

func lockedGroup() nb.Row {
	return nb.NewRow(nb.PortGroupTable, LockedGroup, &nb.PortGroup{Name: LockedGroup})
}

func lockedACLs() []nb.Row {
	drop := func(direction nb.ACLDirection, match string) nb.Row {
		return nb.NewRow(nb.ACLTable, "locked/"+string(direction), &nb.ACL{
			Direction: direction, Priority: aclLocked, Action: nb.ACLActionDrop, Match: match,
		}).In(lockedGroup().Ref, "acls")
	}
	return []nb.Row{
		drop(nb.ACLDirectionFromLport, "inport == @"+LockedGroup),
		drop(nb.ACLDirectionToLport, "outport == @"+LockedGroup),
	}
}

// lockedNeighbours lets the locked legs of a node resolve the node's address, so that they can answer it.
func lockedNeighbours(n Node) []nb.Row {
	from, to := neighbour("arp.tpa", "nd.target", n), neighbour("arp.spa", "nd.target", n)
	allow := func(direction nb.ACLDirection, match string) nb.Row {
		return nb.NewRow(nb.ACLTable, "locked/"+n.Name+"/"+string(direction), &nb.ACL{
			Direction: direction, Priority: aclLockedExcept, Action: nb.ACLActionAllow, Match: match,
		}).In(nb.Ref{Table: nb.LogicalSwitchTable, Key: n.Name}, "acls")
	}
	return []nb.Row{
		allow(nb.ACLDirectionFromLport, fmt.Sprintf("inport == @%s && (%s)", LockedGroup, from)),
		allow(nb.ACLDirectionToLport, fmt.Sprintf("outport == @%s && (%s)", LockedGroup, to)),
	}
}

// neighbour matches what asks for or tells the node's own addresses.
func neighbour(field4, field6 string, n Node) string {
	var parts []string
	for _, subnet := range n.Subnets {
		own := podnetworks.Management(subnet)
		if own.Is4() {
			parts = append(parts, fmt.Sprintf("(arp && %s == %s)", field4, own))
		} else {
			parts = append(parts, fmt.Sprintf("(nd && %s == %s)", field6, own))
		}
	}
	return strings.Join(parts, " || ")
}

// lockedLeg puts a pod's port among the locked ones, and opens the ports that the pod wants open.
func lockedLeg(p Pod, port nb.Row) []nb.Row {
	if p.Network.Role != podnetworks.InfrastructureLocal {
		return []nb.Row{port}
	}
	rows := []nb.Row{port.In(lockedGroup().Ref, "ports")}
	if len(p.OpenPorts) == 0 {
		return rows
	}
	allow := func(direction nb.ACLDirection, action nb.ACLAction, match string) nb.Row {
		return nb.NewRow(nb.ACLTable, "open/"+port.Key+"/"+string(direction), &nb.ACL{
			Direction: direction, Priority: aclLockedExcept, Action: action, Match: match,
		}).In(nb.Ref{Table: nb.LogicalSwitchTable, Key: p.Node}, "acls")
	}
	return append(rows,
		allow(nb.ACLDirectionFromLport, nb.ACLActionAllow, fmt.Sprintf("inport == %s && (arp || nd)", quote(port.Key))),
		allow(nb.ACLDirectionToLport, nb.ACLActionAllowRelated, fmt.Sprintf("outport == %s && (arp || nd || %s)", quote(port.Key), openMatch(p.OpenPorts))))
}

func openMatch(ports []OpenPort) string {
	var parts []string
	for _, p := range ports {
		if p.Protocol == "icmp" {
			parts = append(parts, "icmp4", "icmp6")
			continue
		}
		parts = append(parts, fmt.Sprintf("%s.dst == %d", p.Protocol, p.Port))
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), " || ")
}
