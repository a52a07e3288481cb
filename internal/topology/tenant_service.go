package topology

import (
	"fmt"
	"net/netip"
	"slices"

	"patchbay/internal/ovn/nb"
)

// TenantServiceGroup is the load balancer group on the switch of every tenant's primary network: services of the default
// network that tenants may use.
const TenantServiceGroup = "tenant_services"

// TenantService is a service of a namespace whose primary network is a tenant's. Its endpoints have addresses of that network.
type TenantService struct {
	Service
	Network string       // name
	Layer3  bool         // the network has a switch per node
	Nodes   []string     // with a switch of a layer3 network
	Transit []netip.Addr // of the network
	// Exposed services have node ports or outside addresses: nodes translate those to the cluster IPs.
	Exposed bool
	// Entry are the management addresses of the node that has the network's gateway; empty while there is none.
	Entry []netip.Addr
}

// TenantServiceRows are the load balancers of a service on its network's switch. Nothing else has them, so its cluster IPs
// lead nowhere from other networks.
//
// An exposed service has the same load balancers on the router, and a route that leads from the nodes to it. Its cluster IPs
// serve there as the outside VIPs too: they are unique in the cluster, unlike ports of the one transit address, and they are
// not the address that the network leaves with. OVN before 23.03.3 breaks connections whose source port happens to be
// a VIP's port on that address.
//
// internalTrafficPolicy Local is kept where a node has a switch of its own, on layer3 networks. The one switch of a layer2 network
// knows no node: there every endpoint may be chosen.
func TenantServiceRows(s TenantService) []nb.Row {
	s.InternalLocal = s.InternalLocal && s.Layer3
	var rows []nb.Row
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		rows = append(rows, s.balancers(protocol)...)
	}
	if len(rows) == 0 || !s.Exposed {
		return rows
	}
	for _, ip := range s.ClusterIPs {
		rows = append(rows, s.entrance(ip)...)
	}
	return rows
}

// balancers are the load balancers of one protocol.
func (s TenantService) balancers(protocol string) []nb.Row {
	router := nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(s.Network)}
	vips := s.vips(protocol, slices.Concat(s.ClusterIPs, s.ExternalIPs), "")
	if len(vips) == 0 {
		return nil
	}
	row := s.loadBalancer(protocol, "cluster", vips)
	if s.Exposed {
		row = row.In(router, "load_balancer")
	}
	if !s.InternalLocal {
		return []nb.Row{row.In(s.place(), "load_balancer")}
	}
	var rows []nb.Row
	if s.Exposed {
		rows = append(rows, row)
	}
	if vips := s.vips(protocol, s.ExternalIPs, ""); len(vips) > 0 {
		rows = append(rows, s.loadBalancer(protocol, "external", vips).In(s.place(), "load_balancer"))
	}
	for _, node := range s.Nodes {
		local := s.loadBalancer(protocol, "node_switch_"+node, s.vips(protocol, s.ClusterIPs, node))
		rows = append(rows, local.In(nb.Ref{Table: nb.LogicalSwitchTable, Key: NodeSwitch(s.Network, node)}, "load_balancer"))
	}
	return rows
}

// place is where the load balancers are: on the network's switch, or in the group of all its switches.
func (s TenantService) place() nb.Ref {
	if s.Layer3 {
		return nb.Ref{Table: nb.LoadBalancerGroupTable, Key: ServicesOf(s.Network)}
	}
	return nb.Ref{Table: nb.LogicalSwitchTable, Key: NetworkSwitch(s.Network)}
}

// entrance leads from the nodes to a cluster IP; pods and tenants are refused before. A packet can step from the transit
// switch to the gateway on the gateway's own node only (OVN 23.03 drops it elsewhere), so other nodes send it there first.
// That node's kernel returns it to the overlay with its own address, and the answer finds the same way back.
func (s TenantService) entrance(ip netip.Addr) []nb.Row {
	transit, ok := sameAddress(s.Transit, ip)
	if !ok {
		return nil
	}
	port, prefix := transitRouterPort, netip.PrefixFrom(ip, ip.BitLen()).String()
	route := nb.NewRow(nb.LogicalRouterStaticRouteTable, ClusterRouter+"/"+prefix, &nb.LogicalRouterStaticRoute{
		IPPrefix: prefix, Nexthop: transit.String(), OutputPort: &port,
	})
	rows := []nb.Row{route.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "static_routes")}
	if entry, ok := sameAddress(s.Entry, ip); ok {
		rows = append(rows, routerPolicy("entry/"+ip.String(), &nb.LogicalRouterPolicy{
			Priority: policyEntry, Action: nb.LogicalRouterPolicyActionReroute, Nexthops: []string{entry.String()},
			Match: fmt.Sprintf("%s.dst == %s && !is_chassis_resident(%s)", family(ip), ip, quote("cr-"+GatewayPort(s.Network))),
		}))
	}
	return rows
}

// sameAddress is the address of the list in the family of a.
func sameAddress(list []netip.Addr, a netip.Addr) (netip.Addr, bool) {
	for _, candidate := range list {
		if candidate.Is4() == a.Is4() {
			return candidate, true
		}
	}
	return netip.Addr{}, false
}
