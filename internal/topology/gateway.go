package topology

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// Gateway is where a tenant's network meets the rest of the world: one port of its router on the transit switch, on one node
// at a time. What leaves there takes the network's transit address, so networks may use the same ranges, and a machine that
// moves keeps its connections because the gateway does not move with it.
//
//	switch/<net> -- router/<net> -- gateway/<net> -- transit/<net> -- transit_switch -- cluster_router -- the gateway's node
type Gateway struct {
	Network  string // name
	ID       int    // of the network
	Subnets  []netip.Prefix
	Switches []string // of the network
	// Chassis are the nodes that the gateway may be on, the wanted one first.
	Chassis []string
}

// GatewayPort is the port of a tenant's router towards the transit switch.
func GatewayPort(network string) string { return "gateway/" + network }

// TransitAddresses are a network's addresses on the transit switch, one for each family that it has.
func TransitAddresses(id int, subnets []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, r := range transitRanges {
		if _, ok := sameFamily(subnets, r.Addr()); ok {
			out = append(out, offset(r.Addr(), id))
		}
	}
	return out
}

// firstTransit is what is added to a network's number to get its place in the transit ranges; the cluster router and the
// address that nobody has come before.
const firstTransit = 16

// offset is the address of a network in a transit range, whose last 16 bits are zero.
func offset(base netip.Addr, id int) netip.Addr {
	bytes := base.AsSlice()
	n := id + firstTransit
	bytes[len(bytes)-2], bytes[len(bytes)-1] = byte(n>>8), byte(n)
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// GatewayRows are the gateway of a tenant's network.
func GatewayRows(g Gateway) []nb.Row {
	addresses := TransitAddresses(g.ID, g.Subnets)
	group := gatewayGroup(g)
	rows := append(group, gatewayPort(g, addresses, group[0].UUID()),
		switchRouterPort(TransitSwitch, "transit/"+g.Network, GatewayPort(g.Network)))
	for _, a := range addresses {
		rows = append(rows, gatewayRoute(g, a), gatewayNeighbour(g, a))
		rows = append(rows, gatewayNAT(g, a)...)
	}
	for _, name := range g.Switches {
		rows = append(rows, lostService(name, families(g.Subnets))...)
	}
	return rows
}

// gatewayGroup says which node has the gateway. The first one that lives does.
func gatewayGroup(g Gateway) []nb.Row {
	name := GatewayPort(g.Network)
	group := nb.NewRow(nb.HAChassisGroupTable, name, &nb.HAChassisGroup{Name: name})
	rows := []nb.Row{group}
	for i, chassis := range g.Chassis {
		row := nb.NewRow(nb.HAChassisTable, name+"/"+chassis, &nb.HAChassis{ChassisName: chassis, Priority: 100 - i})
		rows = append(rows, row.In(group.Ref, "ha_chassis"))
	}
	return rows
}

// gatewayPort has host prefixes: with the range's own length the router would reach other tenants' routers at once, past the
// cluster router that keeps them apart.
func gatewayPort(g Gateway, addresses []netip.Addr, group string) nb.Row {
	port := &nb.LogicalRouterPort{
		Name: GatewayPort(g.Network), MAC: podnetworks.MAC(addresses[0]).String(), HaChassisGroup: &group,
	}
	for _, a := range addresses {
		port.Networks = append(port.Networks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	row := nb.NewRow(nb.LogicalRouterPortTable, port.Name, port)
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(g.Network)}, "ports")
}

func gatewayRoute(g Gateway, address netip.Addr) nb.Row {
	port, prefix := GatewayPort(g.Network), netip.PrefixFrom(unspecified(address), 0).String()
	row := nb.NewRow(nb.LogicalRouterStaticRouteTable, NetworkRouter(g.Network)+"/"+prefix, &nb.LogicalRouterStaticRoute{
		IPPrefix: prefix, Nexthop: clusterTransit(address).String(), OutputPort: &port,
	})
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(g.Network)}, "static_routes")
}

// gatewayNeighbour says the cluster router's Ethernet address. Tenants' routers have option dynamic_neigh_routers, without
// which OVN would give each of them a flow for every other one.
func gatewayNeighbour(g Gateway, address netip.Addr) nb.Row {
	ip := clusterTransit(address)
	return nb.NewRow(nb.StaticMACBindingTable, GatewayPort(g.Network)+"/"+ip.String(), &nb.StaticMACBinding{
		LogicalPort: GatewayPort(g.Network), IP: ip.String(), MAC: clusterTransitMAC(), OverrideDynamicMAC: true,
	})
}

// gatewayNAT gives what leaves the network's transit address. Only layer3 networks have several subnets of a family.
func gatewayNAT(g Gateway, address netip.Addr) []nb.Row {
	var rows []nb.Row
	for _, subnet := range g.Subnets {
		if subnet.Addr().Is4() != address.Is4() {
			continue
		}
		key := GatewayPort(g.Network) + "/" + family(address)
		if len(rows) > 0 {
			key += "/" + subnet.Masked().String()
		}
		row := nb.NewRow(nb.NATTable, key, &nb.NAT{
			Type: nb.NATTypeSNAT, ExternalIP: address.String(), LogicalIP: subnet.Masked().String(),
		})
		rows = append(rows, row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: NetworkRouter(g.Network)}, "nat"))
	}
	return rows
}

// families are one subnet of each family.
func families(subnets []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range subnets {
		if _, ok := sameFamily(out, s.Addr()); !ok {
			out = append(out, s)
		}
	}
	return out
}

// clusterTransit is the cluster router's address on the transit switch in the family of a.
func clusterTransit(a netip.Addr) netip.Addr {
	r, _ := sameFamily(transitRanges, a)
	return podnetworks.Gateway(r)
}

// isolationPolicies keep tenants apart from each other and from the default network. What comes from the transit switch is
// known by the port and not by its address, which a tenant could choose.
func isolationPolicies(cluster, transit netip.Prefix) []nb.Row {
	ip := family(cluster.Addr())
	drop := func(key, match string) nb.Row {
		return routerPolicy("isolate/"+key+"/"+ip, &nb.LogicalRouterPolicy{
			Priority: policyIsolate, Action: nb.LogicalRouterPolicyActionDrop, Match: match,
		})
	}
	fromTenants := "inport == " + quote(transitRouterPort)
	return []nb.Row{
		drop("tenant-pods", fmt.Sprintf("%s && %s.dst == %s", fromTenants, ip, cluster)),
		drop("tenant-tenant", fmt.Sprintf("%s && %s.dst == %s", fromTenants, ip, transit)),
		drop("pods-tenant", fmt.Sprintf("%s.src == %s && %s.dst == %s", ip, cluster, ip, transit)),
	}
}

// entryRanges hold one address for each node, under which it reaches tenants' services. Its management address will not do: pods of
// tenants have a leg in the default network, where their answers would go.
var entryRanges = netconf.ClusterEntry

// Entry are the ranges of the addresses under which nodes reach tenants' services.
func Entry() []netip.Prefix { return slices.Clone(entryRanges) }

// EntryAddress is a node's address towards tenants, which follows from its slice of the cluster's range.
func EntryAddress(subnet netip.Prefix) netip.Addr {
	bits := new(big.Int).SetBytes(subnet.Masked().Addr().AsSlice())
	slice := bits.Rsh(bits, uint(subnet.Addr().BitLen()-subnet.Bits())).Bits()
	r, _ := sameFamily(entryRanges, subnet.Addr())
	bytes := r.Addr().AsSlice()
	if len(slice) > 0 {
		bytes[len(bytes)-2], bytes[len(bytes)-1] = byte(slice[0]>>8), byte(slice[0])
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// entryRoute leads answers of tenants to a node.
func entryRoute(node string, subnet netip.Prefix) nb.Row {
	address, port := EntryAddress(subnet), "rtos-"+node
	prefix := netip.PrefixFrom(address, address.BitLen()).String()
	row := nb.NewRow(nb.LogicalRouterStaticRouteTable, ClusterRouter+"/entry/"+node+"/"+family(address), &nb.LogicalRouterStaticRoute{
		IPPrefix: prefix, Nexthop: podnetworks.Management(subnet).String(), OutputPort: &port,
	})
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "static_routes")
}

// entryPolicies let nodes reach tenants' services, and the services answer. Nothing else goes to a node's entry address: its
// kernel would send it back.
func entryPolicies(services netip.Prefix) []nb.Row {
	entry, _ := sameFamily(entryRanges, services.Addr())
	ip := family(entry.Addr())
	policy := func(key string, priority int, action nb.LogicalRouterPolicyAction, match string) nb.Row {
		return routerPolicy("entry/"+key+"/"+ip, &nb.LogicalRouterPolicy{Priority: priority, Action: action, Match: match})
	}
	return []nb.Row{
		policy("from", policyAnswer, nb.LogicalRouterPolicyActionAllow, fmt.Sprintf("%s.src == %s", ip, entry)),
		policy("to", policyAnswer, nb.LogicalRouterPolicyActionAllow, fmt.Sprintf("%s.src == %s && %s.dst == %s", ip, services, ip, entry)),
		policy("other", policyIsolate, nb.LogicalRouterPolicyActionDrop, fmt.Sprintf("%s.dst == %s", ip, entry)),
	}
}
