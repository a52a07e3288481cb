package topology

import (
	"patchbay/internal/ovn/nb"
)

// GuardGroup is the port group of everybody on a network that gives addresses.
const GuardGroup = "addressed_ports"

// aclGuard is the priority of the rules of GuardGroup, above those of policies.
const aclGuard = 31000

// GuardRows keep guests and pods from pretending to be the network's DHCP server. A network without addresses of its own has no
// such rule: there a guest may well be the DHCP server. Router advertisements cannot be stopped here: OVN lets them pass whatever
// the rules say (23.03.1 and later). The nodes' agents drop them before they reach OVN.
func GuardRows() []nb.Row {
	rows := []nb.Row{guardGroup()}
	for _, pretence := range []struct{ key, match string }{
		{"dhcp4", "udp.src == 67 && udp.dst == 68"}, {"dhcp6", "udp.src == 547 && udp.dst == 546"},
	} {
		row := nb.NewRow(nb.ACLTable, "guard/"+pretence.key, &nb.ACL{
			Direction: nb.ACLDirectionFromLport, Priority: aclGuard, Action: nb.ACLActionDrop,
			Match: "inport == @" + GuardGroup + " && " + pretence.match,
		})
		rows = append(rows, row.In(guardGroup().Ref, "acls"))
	}
	return rows
}

func guardGroup() nb.Row {
	return nb.NewRow(nb.PortGroupTable, GuardGroup, &nb.PortGroup{Name: GuardGroup})
}
