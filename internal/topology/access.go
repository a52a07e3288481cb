package topology

import (
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
)

// AccessPort is the logical port by which each node reaches those guests of a primary network that run on it: the console, ssh and
// port-forward come from there. It exists on every node at once, with the same addresses, and nothing that it sends leaves its node.
func AccessPort(network string) string { return "access/" + network }

func accessPort(n Network) nb.Row {
	return switchPort(NetworkSwitch(n.Name), &nb.LogicalSwitchPort{
		Name: AccessPort(n.Name), Type: "localport", Addresses: []string{portAddresses(podnetworks.MAC(n.Management[0]), n.Management)},
	})
}
