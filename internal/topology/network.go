package topology

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// Network is a network beside the default one: a tenant's primary network, or a secondary network of any pods. Everything is
// decided; nothing is left to a default.
type Network struct {
	Name     string
	ID       int // 1 to 4095, unique in the cluster and kept for the network's life
	Topology netconf.Topology
	Role     podnetworks.Role
	MTU      int // bytes
	// Subnets are the ranges of a layer2 or localnet network, or the whole ranges of a layer3 network; the primary family first.
	Subnets []netip.Prefix
	// Slices are what nodes have of a layer3 network, by the nodes' names.
	Slices []NodeSlice
	// Gateways are the router's addresses on the switch, one per subnet and in its order; empty where there is no router, and on
	// layer3, where each slice has its own.
	Gateways []netip.Addr
	// Management are the addresses by which every node reaches its own guests, in the order of the subnets; empty: it cannot.
	Management []netip.Addr
	Physical   string // localnet: name of the physical network in the nodes' bridge mappings
	VLAN       int    // localnet: 802.1Q tag, 0 for none

	// Namespaces are those of a primary network, DNS and Domain the cluster's; guests learn from them by DHCP what to search.
	Namespaces []string
	DNS        []netip.Addr
	Domain     string
}

// HasRouter tells whether the network leads anywhere else.
func (n Network) HasRouter() bool {
	return len(n.Gateways) > 0 || n.Topology == netconf.Layer3 && n.Role == podnetworks.Primary
}

// NetworkSwitch is the switch of a layer2 or localnet network; the names of a layer3 network's switches begin with it.
func NetworkSwitch(network string) string { return "switch/" + network }

// NetworkRouter is the router of a network that has one.
func NetworkRouter(network string) string { return "router/" + network }

// NetworkRouterPort is the router's port towards the network's switch; its addresses are the network's gateways.
func NetworkRouterPort(network string) string { return "rtos/" + network }

// networkSwitchPort is the switch's port towards the router.
func networkSwitchPort(network string) string { return "stor/" + network }

// NICPort is the logical port of a virtual machine's interface. It belongs to the machine and not to one of its pods.
func NICPort(namespace, vmi, nic string) string { return "vm/" + namespace + "/" + vmi + "/" + nic }

// AttachmentPort is the logical port of a pod's own interface on a network, for one key of its annotation.
func AttachmentPort(key, namespace, pod string) string {
	return strings.NewReplacer("-", ".", "/", ".").Replace(key) + "_" + namespace + "_" + pod
}

// NetworkRows are what a network consists of without anybody on it: its switch, for localnet the port to the physical network,
// for a network with a router that router, and what DHCP answers there. How the router meets the world is GatewayRows'.
func NetworkRows(n Network) []nb.Row {
	if n.Topology == netconf.Layer3 {
		return layer3Rows(n)
	}
	rows := []nb.Row{networkSwitch(n)}
	if n.Topology == netconf.Localnet {
		rows = append(rows, physicalPort(n))
	}
	if n.HasRouter() {
		rows = append(rows, networkRouter(n)...)
	}
	if len(n.Management) > 0 {
		rows = append(rows, accessPort(n))
	}
	return append(rows, dhcpRows(n)...)
}

func (n Network) ids() map[string]string {
	return map[string]string{"k8s.ovn.org/network": n.Name, "k8s.ovn.org/topology": string(n.Topology)}
}

func networkSwitch(n Network) nb.Row {
	row := &nb.LogicalSwitch{Name: NetworkSwitch(n.Name), ExternalIDs: n.ids()}
	if n.HasRouter() {
		row.LoadBalancerGroup = []string{nb.Ref{Table: nb.LoadBalancerGroupTable, Key: TenantServiceGroup}.UUID()}
	}
	return nb.NewRow(nb.LogicalSwitchTable, row.Name, row)
}

// physicalPort connects the switch with the bridge that each node maps to the physical network.
func physicalPort(n Network) nb.Row {
	port := &nb.LogicalSwitchPort{
		Name: "localnet/" + n.Name, Type: "localnet", Addresses: []string{"unknown"},
		Options: map[string]string{"network_name": n.Physical},
	}
	if n.VLAN != 0 {
		port.TagRequest = &n.VLAN // northd writes the tag itself
	}
	return switchPort(NetworkSwitch(n.Name), port)
}

// networkRouter is one router for all nodes: its port has the same addresses and the same MAC everywhere, so a guest that moves
// finds the gateway it knows.
func networkRouter(n Network) []nb.Row {
	router := n.router()
	port := &nb.LogicalRouterPort{
		Name: NetworkRouterPort(n.Name), MAC: podnetworks.MAC(n.Gateways[0]).String(), Ipv6RaConfigs: n.advertisement(),
	}
	for i, g := range n.Gateways {
		port.Networks = append(port.Networks, netip.PrefixFrom(g, n.Subnets[i].Bits()).String())
	}
	row := nb.NewRow(nb.LogicalRouterPortTable, port.Name, port)
	return []nb.Row{
		router, row.In(router.Ref, "ports"),
		switchRouterPort(NetworkSwitch(n.Name), networkSwitchPort(n.Name), port.Name),
	}
}

func (n Network) router() nb.Row {
	name := NetworkRouter(n.Name)
	return nb.NewRow(nb.LogicalRouterTable, name, &nb.LogicalRouter{
		Name: name, ExternalIDs: n.ids(),
		Options: map[string]string{"always_learn_from_arp_request": "false", "dynamic_neigh_routers": "true"},
	})
}

// advertisement is what the router tells IPv6 hosts: where it is, and that addresses come by DHCPv6. Plain pods have a static
// route, which the low preference lets win. It also names the DNS server and what to search there: all that a guest hears of it that
// asks for no addresses, and the domains that DHCPv6 has no room for. A router speaks to the guests of all namespaces, so the
// domain of a namespace is told by DHCPv6 when there are several.
func (n Network) advertisement() map[string]string {
	if !slices.ContainsFunc(n.Gateways, netip.Addr.Is6) {
		return nil
	}
	ra := map[string]string{
		"address_mode": "dhcpv6_stateful", "router_preference": "LOW", "mtu": strconv.Itoa(n.MTU),
		"send_periodic": "true", "min_interval": "300", "max_interval": "900",
	}
	if server := n.dns(false); server != "" {
		ra["rdnss"], ra["dnssl"] = server, strings.Join(n.searchForAll(), ",")
	}
	return ra
}
