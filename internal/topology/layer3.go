package topology

import (
	"net/netip"
	"slices"

	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// A layer3 network is one switch per node, all joined by one distributed router, as the default network is:
//
//	pods --- switch/<net>_<node> --- stor/<net>_<node> / rtos/<net>_<node> --- router/<net> --- gateway/<net> (primary networks only)
//
// Nothing of it is bound to a node, so a packet takes all steps on its sender's node and crosses one tunnel. It is for pods: an
// address is of its node's slice, so a machine could not take its own along.

// NodeSlice is what a node has of a layer3 network's ranges.
type NodeSlice struct {
	Node    string
	Subnets []netip.Prefix // one per family, the primary one first
}

// Slice is what a node has of the network.
func (n Network) Slice(node string) (NodeSlice, bool) {
	at := slices.IndexFunc(n.Slices, func(s NodeSlice) bool { return s.Node == node })
	if at < 0 {
		return NodeSlice{}, false
	}
	return n.Slices[at], true
}

// Gateways are the router's addresses in the slice.
func (s NodeSlice) Gateways() []netip.Addr {
	var out []netip.Addr
	for _, subnet := range s.Subnets {
		out = append(out, podnetworks.Gateway(subnet))
	}
	return out
}

// NodeSwitch is the switch of a layer3 network on a node.
func NodeSwitch(network, node string) string { return NetworkSwitch(network) + "_" + node }

// ServicesOf is the load balancer group on all switches of a layer3 network: the services of its namespaces.
func ServicesOf(network string) string { return "services/" + network }

// switchOf is the switch that a workload on a node is plugged into.
func (n Network) switchOf(node string) string {
	if n.Topology == netconf.Layer3 {
		return NodeSwitch(n.Name, node)
	}
	return NetworkSwitch(n.Name)
}

// Switches are all switches of the network.
func (n Network) Switches() []string {
	if n.Topology != netconf.Layer3 {
		return []string{NetworkSwitch(n.Name)}
	}
	var names []string
	for _, s := range n.Slices {
		names = append(names, NodeSwitch(n.Name, s.Node))
	}
	return names
}

func layer3Rows(n Network) []nb.Row {
	rows := []nb.Row{n.router()}
	if n.HasRouter() {
		rows = append(rows, nb.NewRow(nb.LoadBalancerGroupTable, ServicesOf(n.Name), &nb.LoadBalancerGroup{Name: ServicesOf(n.Name)}))
	}
	for _, subnet := range n.Subnets {
		rows = append(rows, n.discard(subnet))
	}
	for _, s := range n.Slices {
		rows = append(rows, n.sliceRows(s)...)
	}
	return rows
}

// discard ends what goes to a slice that no node has: the default route would lead it out of the overlay.
func (n Network) discard(subnet netip.Prefix) nb.Row {
	prefix := subnet.Masked().String()
	row := nb.NewRow(nb.LogicalRouterStaticRouteTable, NetworkRouter(n.Name)+"/"+prefix, &nb.LogicalRouterStaticRoute{IPPrefix: prefix, Nexthop: "discard"})
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(n.Name)}, "static_routes")
}

// sliceRows are a node's switch and the router's port on it.
func (n Network) sliceRows(s NodeSlice) []nb.Row {
	name := NodeSwitch(n.Name, s.Node)
	node := &nb.LogicalSwitch{Name: name, ExternalIDs: n.ids()}
	if n.HasRouter() {
		for _, group := range []string{TenantServiceGroup, ServicesOf(n.Name)} {
			node.LoadBalancerGroup = append(node.LoadBalancerGroup, nb.Ref{Table: nb.LoadBalancerGroupTable, Key: group}.UUID())
		}
	}
	port := &nb.LogicalRouterPort{Name: NetworkRouterPort(n.Name) + "_" + s.Node, MAC: podnetworks.MAC(s.Gateways()[0]).String()}
	for i, gateway := range s.Gateways() {
		port.Networks = append(port.Networks, netip.PrefixFrom(gateway, s.Subnets[i].Bits()).String())
	}
	row := nb.NewRow(nb.LogicalRouterPortTable, port.Name, port)
	return []nb.Row{
		nb.NewRow(nb.LogicalSwitchTable, name, node),
		row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(n.Name)}, "ports"),
		switchRouterPort(name, networkSwitchPort(n.Name)+"_"+s.Node, port.Name),
	}
}
