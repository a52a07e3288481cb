package topology

import (
	"fmt"
	"net/netip"

	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// Node is a node of the cluster as the overlay sees it. Its chassis (system-id) carries the same name.
type Node struct {
	Name    string
	Subnets []netip.Prefix // its slices of the cluster's ranges, primary family first
}

// NodeRows are a node's switch, the switch's port on the cluster router, the management port, and the node's way out.
func NodeRows(n Node) []nb.Row {
	rows := []nb.Row{nodeSwitch(n.Name)}
	rows = append(rows, nodeRouterPort(n)...)
	rows = append(rows, managementPort(n))
	rows = append(rows, lockedNeighbours(n)...)
	// Node ports lead to services of all networks: from the node itself, or from another node to the gateway here.
	rows = append(rows, lostService(n.Name, n.Subnets, ManagementPort(n.Name), "stor-"+n.Name)...)
	for _, subnet := range n.Subnets {
		rows = append(rows, egressPolicy(n.Name, subnet), probesACL(n.Name, subnet))
		rows = append(rows, entryRoute(n.Name, subnet))
	}
	return rows
}

func nodeSwitch(node string) nb.Row {
	return nb.NewRow(nb.LogicalSwitchTable, node, &nb.LogicalSwitch{
		Name:              node,
		LoadBalancerGroup: []string{nb.Ref{Table: nb.LoadBalancerGroupTable, Key: ServiceGroup}.UUID()},
	})
}

// nodeRouterPort binds the router's port of a node's switch to that node. Traffic between two nodes then crosses the tunnel
// on the router's side, so a node needs to know the switches of its own only: without this every node would carry the
// flows of every other.
func nodeRouterPort(n Node) []nb.Row {
	var networks []string
	for _, subnet := range n.Subnets {
		networks = append(networks, netip.PrefixFrom(podnetworks.Gateway(subnet), subnet.Bits()).String())
	}
	port := routerPort(&nb.LogicalRouterPort{
		Name: "rtos-" + n.Name, MAC: podnetworks.MAC(podnetworks.Gateway(n.Subnets[0])).String(), Networks: networks,
	})
	name := port.Key + "-" + n.Name
	gateway := nb.NewRow(nb.GatewayChassisTable, name, &nb.GatewayChassis{Name: name, ChassisName: n.Name, Priority: 1})
	return []nb.Row{port, gateway.In(port.Ref, "gateway_chassis"), switchRouterPort(n.Name, "stor-"+n.Name, port.Key)}
}

// managementPort has no port security: replies from outside the overlay enter through it with their own source addresses.
func managementPort(n Node) nb.Row {
	var ips []netip.Addr
	for _, subnet := range n.Subnets {
		ips = append(ips, podnetworks.Management(subnet))
	}
	return switchPort(n.Name, &nb.LogicalSwitchPort{
		Name:      ManagementPort(n.Name),
		Addresses: []string{portAddresses(podnetworks.MAC(ips[0]), ips)},
		Options:   map[string]string{"requested-chassis": n.Name},
	})
}

// egressPolicy sends what leaves the overlay to the node it is on. Only the node where the management port resides turns
// the policy into flows, so the router stays one row set while each node has its own way out.
func egressPolicy(node string, subnet netip.Prefix) nb.Row {
	gateway := podnetworks.Management(subnet)
	return routerPolicy("egress/"+node+"/"+family(gateway), &nb.LogicalRouterPolicy{
		Priority: policyEgress, Action: nb.LogicalRouterPolicyActionReroute, Nexthops: []string{gateway.String()},
		Match: fmt.Sprintf("%s && is_chassis_resident(%s)", family(gateway), quote(ManagementPort(node))),
	})
}

// probesACL lets a node reach its own pods (the kubelet's probes) before any policy is asked.
func probesACL(node string, subnet netip.Prefix) nb.Row {
	source := podnetworks.Management(subnet)
	row := nb.NewRow(nb.ACLTable, "probes/"+node+"/"+family(source), &nb.ACL{
		Direction: nb.ACLDirectionToLport, Priority: aclProbes, Action: nb.ACLActionAllowRelated,
		Match: fmt.Sprintf("%s.src == %s", family(source), source),
	})
	return row.In(nb.Ref{Table: nb.LogicalSwitchTable, Key: node}, "acls")
}
