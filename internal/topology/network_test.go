package topology

import (
	"net"
	"net/netip"
	"testing"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// primary is a tenant's network of both families.
func primary() Network {
	return Network{
		Name: "cluster_udn_red-net", ID: 7, Topology: netconf.Layer2, Role: podnetworks.Primary, MTU: 1400,
		Subnets: prefixes("10.20.0.0/16", "fd00:20::/64"), Gateways: addrs("10.20.0.1", "fd00:20::1"),
		Namespaces: []string{"pink", "red"}, DNS: addrs("10.96.0.10", "fd00:10:96::a"), Domain: "cluster.local",
	}
}

func secondary() Network {
	return Network{
		Name: "blue", ID: 8, Topology: netconf.Layer2, Role: podnetworks.Secondary, MTU: 1300, Subnets: prefixes("10.100.200.0/24"),
		DNS: addrs("10.96.0.10"), Domain: "cluster.local",
	}
}

func bare() Network {
	return Network{Name: "bare", ID: 9, Topology: netconf.Layer2, Role: podnetworks.Secondary, MTU: 1400}
}

func localnet() Network {
	return Network{Name: "vlan", ID: 10, Topology: netconf.Localnet, Role: podnetworks.Secondary, MTU: 1500, Physical: "physnet", VLAN: 200}
}

// layer3 is a primary network with a second range of IPv4.
func layer3() Network {
	return Network{
		Name: "green_l3", ID: 11, Topology: netconf.Layer3, Role: podnetworks.Primary, MTU: 1400,
		Subnets: prefixes("10.30.0.0/16", "10.31.0.0/16", "fd00:30::/48"), Namespaces: []string{"green"},
		Slices: []NodeSlice{
			{Node: "node-1", Subnets: prefixes("10.30.0.0/24", "fd00:30::/64")}, {Node: "node-2", Subnets: prefixes("10.30.1.0/24", "fd00:30:0:1::/64")},
		},
	}
}

func TestNetwork(t *testing.T) {
	isolated, empty := layer3(), layer3()
	isolated.Role, isolated.Namespaces = podnetworks.Secondary, nil
	empty.Slices = nil
	six := primary()
	six.Subnets, six.Gateways, six.Namespaces = six.Subnets[1:], six.Gateways[1:], six.Namespaces[1:]
	untagged := localnet()
	untagged.VLAN, untagged.Subnets = 0, prefixes("192.168.7.0/24")
	cases := map[string]Network{
		"primary": primary(), "primary ipv6": six, "secondary": secondary(), "without addresses": bare(),
		"layer3 primary": layer3(), "layer3 secondary": isolated, "layer3 without nodes": empty,
		"localnet with a tag": localnet(), "localnet with addresses": untagged,
	}
	for name, n := range cases {
		t.Run(name, func(t *testing.T) { check(t, NetworkRows(n)) })
	}
}

func TestNIC(t *testing.T) {
	mac := net.HardwareAddr{0x0a, 0x58, 0x0a, 0x14, 0, 5}
	on := func(n Network, chassis ...string) NIC {
		nic := NIC{Namespace: "red", VMI: "web", Name: "default", Network: n, MAC: mac, Hostname: "web-1", Chassis: chassis}
		for _, subnet := range n.Subnets {
			nic.IPs = append(nic.IPs, netip.PrefixFrom(subnet.Addr().Next().Next().Next(), subnet.Bits()))
		}
		return nic
	}
	cases := map[string]NIC{
		"primary": on(primary(), "node-1"), "moving": on(primary(), "node-1", "node-2"), "secondary": on(secondary(), "node-1"),
		"without addresses": on(bare(), "node-1"), "nowhere": on(bare()), "localnet": on(localnet(), "node-2"),
	}
	for name, nic := range cases {
		t.Run(name, func(t *testing.T) { check(t, NICRows(nic)) })
	}
}

func TestAttachment(t *testing.T) {
	a := Attachment{
		Key: "red/red-net", Namespace: "red", Pod: "web-0", UID: "0f1e", Node: "node-1", Network: primary(),
		MAC: net.HardwareAddr{0x0a, 0x58, 0x0a, 0x14, 0, 5}, IPs: prefixes("10.20.0.5/16", "fd00:20::5/64"),
	}
	static := a
	static.Key, static.Network, static.IPs = "red/bare/1", bare(), prefixes("192.168.1.7/24")
	sliced := a
	sliced.Key, sliced.Network, sliced.Node, sliced.IPs = "green/l3", layer3(), "node-2", prefixes("10.30.1.3/24", "fd00:30:0:1::3/64")
	for name, a := range map[string]Attachment{"primary": a, "layer3": sliced, "static address where none are given": static} {
		t.Run(name, func(t *testing.T) { check(t, AttachmentRows(a)) })
	}
}

func TestGuard(t *testing.T) { check(t, GuardRows()) }
