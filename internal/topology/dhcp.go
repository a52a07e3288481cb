package topology

import (
	"net/netip"
	"strconv"
	"strings"

	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// DHCP answers come from an address that no network has, so they are the same everywhere. A lease is shorter than an hour, so
// that a change of options arrives within it.
const (
	dhcpServer4   = "169.254.1.1"
	dhcpLeaseTime = "3500" // seconds
)

// dhcpServer6 is hashed to the server's identity.
var dhcpServer6 = netip.MustParseAddr("fe80::1")

// dhcpKey is the row that answers guests of a namespace in one family. Where there is no DNS to search, all namespaces have the
// same answers.
func (n Network) dhcpKey(namespace string, subnet netip.Prefix) string {
	if !n.HasRouter() {
		namespace = ""
	}
	return strings.Join([]string{"dhcp", n.Name, namespace, family(subnet.Addr())}, "/")
}

// dhcpRows are the answers of the network. They are the network's and not the guests': what differs from guest to guest (address
// and host name) OVN takes from the guest's port.
func dhcpRows(n Network) []nb.Row {
	namespaces := n.Namespaces
	if !n.HasRouter() {
		namespaces = []string{""}
	}
	var rows []nb.Row
	for _, namespace := range namespaces {
		for i, subnet := range n.Subnets {
			options := n.dhcp6(namespace)
			if subnet.Addr().Is4() {
				options = n.dhcp4(namespace, i)
			}
			rows = append(rows, nb.NewRow(nb.DHCPOptionsTable, n.dhcpKey(namespace, subnet), &nb.DHCPOptions{
				Cidr: subnet.String(), Options: options, ExternalIDs: n.ids(),
			}))
		}
	}
	return rows
}

func (n Network) dhcp4(namespace string, i int) map[string]string {
	server := podnetworks.MAC(netip.MustParseAddr(dhcpServer4))
	options := map[string]string{
		"server_id": dhcpServer4, "server_mac": server.String(), "lease_time": dhcpLeaseTime, "mtu": strconv.Itoa(n.MTU),
	}
	if !n.HasRouter() {
		return options
	}
	options["router"] = n.Gateways[i].String()
	if servers := n.dns(true); servers != "" {
		options["dns_server"] = servers
		options["domain_name"] = quote(n.search(namespace)[0])
		options["domain_search_list"] = quote(strings.Join(n.search(namespace), ","))
	}
	return options
}

func (n Network) dhcp6(namespace string) map[string]string {
	options := map[string]string{"server_id": podnetworks.MAC(dhcpServer6).String()}
	if servers := n.dns(false); n.HasRouter() && servers != "" {
		options["dns_server"] = servers
		options["domain_search"] = quote(n.search(namespace)[0]) // OVN 23.03 takes a list for one name; the router advertises the rest
	}
	return options
}

// dns is the cluster's DNS server of one family.
func (n Network) dns(is4 bool) string {
	for _, a := range n.DNS {
		if a.Is4() == is4 {
			return a.String()
		}
	}
	return ""
}

// search are the domains that a pod of the namespace searches.
func (n Network) search(namespace string) []string {
	return []string{namespace + ".svc." + n.Domain, "svc." + n.Domain, n.Domain}
}

// searchForAll are the domains that pods of every namespace of the network search.
func (n Network) searchForAll() []string {
	if len(n.Namespaces) == 1 {
		return n.search(n.Namespaces[0])
	}
	return n.search("")[1:]
}
