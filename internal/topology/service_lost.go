package topology

import (
	"fmt"
	"net/netip"
	"strings"

	"patchbay/internal/ovn/nb"
)

// aclLostService is above the policies' bands: a policy that allows everything does not make an address exist.
const aclLostService = 31000

// ServiceSet is the address set with the range of cluster IPs of a family ("ip4", "ip6").
func ServiceSet(family string) string { return "cluster_ips_" + family }

func serviceSet(services netip.Prefix) nb.Row {
	name := ServiceSet(family(services.Addr()))
	return nb.NewRow(nb.AddressSetTable, name, &nb.AddressSet{Name: name, Addresses: []string{services.String()}})
}

// lostService refuses at once, on a switch, what goes to a service address that no load balancer of the switch has: the
// service does not exist, or belongs to another network. It comes after the load balancers. Exempt ports may go on.
func lostService(logicalSwitch string, subnets []netip.Prefix, exempt ...string) []nb.Row {
	acl := func(key string, priority int, action nb.ACLAction, match string) nb.Row {
		return nb.NewRow(nb.ACLTable, "lost-service/"+logicalSwitch+"/"+key, &nb.ACL{
			Direction: nb.ACLDirectionFromLport, Priority: priority, Action: action, Match: match,
			Options: map[string]string{"apply-after-lb": "true"},
		}).In(nb.Ref{Table: nb.LogicalSwitchTable, Key: logicalSwitch}, "acls")
	}
	var quoted []string
	for _, port := range exempt {
		quoted = append(quoted, quote(port))
	}
	var rows []nb.Row
	for _, subnet := range subnets {
		ip := family(subnet.Addr())
		match := ip + ".dst == $" + ServiceSet(ip)
		rows = append(rows, acl("refuse/"+ip, aclLostService, nb.ACLActionReject, match))
		if len(exempt) > 0 {
			rows = append(rows, acl("exempt/"+ip, aclLostService+1, nb.ACLActionAllow, fmt.Sprintf("inport == { %s } && %s", strings.Join(quoted, ", "), match)))
		}
	}
	return rows
}

// foreignServicePolicy keeps tenants' routers from service addresses of other networks, should one get past its switch.
func foreignServicePolicy(services netip.Prefix) nb.Row {
	ip := family(services.Addr())
	return routerPolicy("foreign-service/"+services.String(), &nb.LogicalRouterPolicy{
		Priority: policyForeign, Action: nb.LogicalRouterPolicyActionDrop,
		Match: "inport == " + quote(transitRouterPort) + " && " + ip + ".dst == " + services.String(),
	})
}
