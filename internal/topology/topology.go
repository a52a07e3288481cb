// Package topology turns the cluster, its nodes, pods and services into wanted rows of the OVN Northbound database. It is
// pure: no client, clock, I/O or goroutine. Equal input gives equal rows, so the same functions serve the controller, the
// tests and tools that explain a network.
//
// The default network is one switch per node, all joined by one distributed router. A node reaches its pods, and pods reach
// everything outside the overlay, through the management port of their own node; the node's kernel masquerades.
//
//	pods --- switch <node> --- stor-<node> / rtos-<node> --- router cluster_router --- rtot / ttor --- switch transit_switch
//	               \---------- k8s-<node> (pb-mp0 on the node)                                         (tenants' routers)
package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

// Names that users and other packages meet in the database.
const (
	ClusterRouter = "cluster_router"
	TransitSwitch = "transit_switch"
	// ServiceGroup is the load balancer group on every node's switch.
	ServiceGroup = "cluster_services"

	transitRouterPort = "rtot-" + ClusterRouter
	transitSwitchPort = "ttor-" + ClusterRouter
)

// Priorities of the cluster router's policies; the highest that matches decides.
const (
	policyForeign     = 1300 // service addresses are never reached from tenants' networks
	policyEntry       = 1250 // to tenants' services through the gateway's node
	policyAnswer      = 1200 // from nodes to tenants' services and back
	policyIsolate     = 1100 // between tenants, and between them and the default network
	policyInternal    = 1000 // destinations inside the overlay keep their route
	policyLostService = 900  // a service address that no load balancer answered must not leave
	policyEgress      = 100  // everything else leaves through the node it is on
)

// aclProbes is the priority of the rule that lets a node reach its own pods whatever the policies say. Policies use bands
// below it.
const aclProbes = 32000

// Ranges of the transit switch, where tenants' routers meet the cluster router. The first address is the cluster router's.
var transitRanges = netconf.ClusterJoin

// Transit are the ranges of the transit switch: what tenants' routers send towards the outside comes from there.
func Transit() []netip.Prefix { return slices.Clone(transitRanges) }

// ManagementPort is the logical port of a node's management interface.
func ManagementPort(node string) string { return "k8s-" + node }

// PodPort is the logical port of a pod on the default network. Neither part can contain the separator.
func PodPort(namespace, pod string) string { return namespace + "_" + pod }

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip4"
	}
	return "ip6"
}

// sameFamily is the prefix of the list in the family of a.
func sameFamily(prefixes []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Addr().Is4() == a.Is4() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// ClusterRows are what exists once: the router with its policies for inside destinations, the transit switch and the group of
// the services.
func ClusterRows(s settings.Settings) []nb.Row {
	router := nb.NewRow(nb.LogicalRouterTable, ClusterRouter, &nb.LogicalRouter{
		Name: ClusterRouter,
		// Every next hop is known from the rows; learning from ARP would cost a Southbound row per neighbour.
		Options: map[string]string{"always_learn_from_arp_request": "false"},
	})
	rows := []nb.Row{router, global(), lockedGroup()}
	for _, group := range []string{ServiceGroup, TenantServiceGroup} {
		rows = append(rows, nb.NewRow(nb.LoadBalancerGroupTable, group, &nb.LoadBalancerGroup{Name: group}))
	}
	rows = append(rows, lockedACLs()...)
	rows = append(rows, transit(s)...)
	for _, cidr := range s.ClusterCIDRs {
		rows = append(rows, allowPolicy(cidr))
		if transit, ok := sameFamily(transitRanges, cidr.Addr()); ok {
			rows = append(rows, allowPolicy(transit), defaultRoute(transit))
			rows = append(rows, isolationPolicies(cidr, transit)...)
		}
	}
	for _, cidr := range s.ServiceCIDRs {
		rows = append(rows, entryPolicies(cidr)...)
		rows = append(rows, serviceSet(cidr), discardRoute(cidr), foreignServicePolicy(cidr), routerPolicy("lost-service/"+cidr.String(), &nb.LogicalRouterPolicy{
			Priority: policyLostService, Action: nb.LogicalRouterPolicyActionDrop,
			Match: family(cidr.Addr()) + ".dst == " + cidr.String(),
		}))
	}
	return rows
}

// global fixes what northd would otherwise choose at random in a new database and put into flows.
func global() nb.Row {
	return nb.NewRow(nb.NBGlobalTable, "", &nb.NBGlobal{Options: map[string]string{
		"mac_prefix":      "0a:58:00",
		"svc_monitor_mac": "0a:58:00:00:00:01",
	}})
}

// transit joins the cluster router to the switch where tenants' routers meet it.
func transit(s settings.Settings) []nb.Row {
	var networks []string
	for _, cidr := range s.ClusterCIDRs {
		if r, ok := sameFamily(transitRanges, cidr.Addr()); ok {
			networks = append(networks, netip.PrefixFrom(podnetworks.Gateway(r), r.Bits()).String())
		}
	}
	return []nb.Row{
		nb.NewRow(nb.LogicalSwitchTable, TransitSwitch, &nb.LogicalSwitch{Name: TransitSwitch}),
		routerPort(&nb.LogicalRouterPort{Name: transitRouterPort, MAC: clusterTransitMAC(), Networks: networks}),
		switchRouterPort(TransitSwitch, transitSwitchPort, transitRouterPort),
	}
}

// clusterTransitMAC is the cluster router's Ethernet address on the transit switch, whatever families the cluster has.
func clusterTransitMAC() string {
	return podnetworks.MAC(podnetworks.Gateway(transitRanges[0])).String()
}

// discardRoute ends what goes to service addresses that no load balancer answered and that no tenant's network has.
func discardRoute(services netip.Prefix) nb.Row {
	row := nb.NewRow(nb.LogicalRouterStaticRouteTable, ClusterRouter+"/"+services.String(), &nb.LogicalRouterStaticRoute{
		IPPrefix: services.String(), Nexthop: "discard",
	})
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "static_routes")
}

// defaultRoute makes the policies see what leaves the overlay: OVN drops a packet without a route before it evaluates
// them. A packet that no policy takes ends on the transit switch, at an address that nobody has.
func defaultRoute(transit netip.Prefix) nb.Row {
	port := transitRouterPort
	nobody := podnetworks.Management(transit)
	prefix := netip.PrefixFrom(unspecified(nobody), 0).String()
	row := nb.NewRow(nb.LogicalRouterStaticRouteTable, ClusterRouter+"/"+prefix, &nb.LogicalRouterStaticRoute{
		IPPrefix: prefix, Nexthop: nobody.String(), OutputPort: &port,
	})
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "static_routes")
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// allowPolicy exempts an inside range from egress. A range is exempted by a policy above, never by "!=" in the egress
// policy: OVN makes one flow per prefix bit of that.
func allowPolicy(cidr netip.Prefix) nb.Row {
	return routerPolicy("internal/"+cidr.String(), &nb.LogicalRouterPolicy{
		Priority: policyInternal, Action: nb.LogicalRouterPolicyActionAllow,
		Match: family(cidr.Addr()) + ".dst == " + cidr.String(),
	})
}

func routerPolicy(key string, p *nb.LogicalRouterPolicy) nb.Row {
	row := nb.NewRow(nb.LogicalRouterPolicyTable, ClusterRouter+"/"+key, p)
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "policies")
}

func routerPort(p *nb.LogicalRouterPort) nb.Row {
	row := nb.NewRow(nb.LogicalRouterPortTable, p.Name, p)
	return row.In(nb.Ref{Table: nb.LogicalRouterTable, Key: ClusterRouter}, "ports")
}

func switchPort(logicalSwitch string, p *nb.LogicalSwitchPort) nb.Row {
	row := nb.NewRow(nb.LogicalSwitchPortTable, p.Name, p)
	return row.In(nb.Ref{Table: nb.LogicalSwitchTable, Key: logicalSwitch}, "ports")
}

func switchRouterPort(logicalSwitch, name, routerPort string) nb.Row {
	return switchPort(logicalSwitch, &nb.LogicalSwitchPort{
		Name: name, Type: "router", Addresses: []string{"router"}, Options: map[string]string{"router-port": routerPort},
	})
}

// portAddresses is "MAC IP IP6" as OVN writes a port's addresses.
func portAddresses(mac fmt.Stringer, ips []netip.Addr) string {
	parts := []string{mac.String()}
	for _, ip := range ips {
		parts = append(parts, ip.String())
	}
	return strings.Join(parts, " ")
}

func quote(s string) string { return strconv.Quote(s) }
