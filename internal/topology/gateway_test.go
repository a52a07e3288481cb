package topology

import (
	"testing"

	"patchbay/internal/podnetworks"
)

func TestGateway(t *testing.T) {
	dual := Gateway{
		Network: "cluster_udn_red", ID: 1, Subnets: prefixes("10.20.0.0/16", "fd00:20::/64"),
		Chassis: []string{"node-2", "node-1"}, Switches: []string{NetworkSwitch("cluster_udn_red")},
	}
	last := Gateway{Network: "blue_net", ID: 4095, Subnets: prefixes("10.20.0.0/16"), Chassis: []string{"node-1"}, Switches: []string{NetworkSwitch("blue_net")}}
	nowhere := Gateway{Network: "green", ID: 7, Subnets: prefixes("fd00:20::/64"), Switches: []string{NetworkSwitch("green")}}
	sliced := layer3()
	routed := Gateway{Network: sliced.Name, ID: sliced.ID, Subnets: sliced.Subnets, Chassis: []string{"node-1"}, Switches: sliced.Switches()}
	for name, g := range map[string]Gateway{"dual": dual, "ipv4 last": last, "ipv6 without a node": nowhere, "layer3": routed} {
		t.Run(name, func(t *testing.T) { check(t, GatewayRows(g)) })
	}
}

func TestLockedLeg(t *testing.T) {
	ips := prefixes("10.128.2.5/23", "fd00:10:128:1::5/64")
	leg := podnetworks.Network{IPs: ips, MAC: podnetworks.MAC(ips[0].Addr()), Role: podnetworks.InfrastructureLocal}
	cases := map[string][]OpenPort{
		"closed": nil,
		"open":   {{Protocol: "tcp", Port: 9100}, {Protocol: "udp", Port: 53}, {Protocol: "icmp"}},
	}
	for name, open := range cases {
		t.Run(name, func(t *testing.T) {
			check(t, PodRows(Pod{Namespace: "red", Name: "web", UID: "0f1e", Node: "node-1", Network: leg, OpenPorts: open}))
		})
	}
}

func TestTenantService(t *testing.T) {
	web := []Endpoint{endpoint("10.20.0.5:8080", "node-1", Ready), endpoint("[fd00:20::5]:8080", "node-1", Ready)}
	s := Service{
		Namespace: "red", Name: "web", ClusterIPs: addrs("10.96.3.4", "fd00:10:96::34"),
		Ports: []ServicePort{{Protocol: "tcp", Port: 80, Endpoints: web}},
	}
	outside, local, headless := s, s, s
	outside.ExternalIPs, outside.Affinity = addrs("192.0.2.7"), true
	local.InternalLocal = true
	localOutside := outside
	localOutside.InternalLocal = true
	headless.ClusterIPs = nil
	transit := TransitAddresses(1, prefixes("10.20.0.0/16", "fd00:20::/64"))
	for name, s := range map[string]TenantService{
		"layer3":         {Service: s, Network: "green_l3", Layer3: true, Transit: transit},
		"layer3 local":   {Service: localOutside, Layer3: true, Nodes: []string{"node-1", "node-2"}, Exposed: true},
		"inside":         {Service: s},
		"exposed":        {Service: outside, Exposed: true},
		"internal local": {Service: local},
		"headless":       {Service: headless, Exposed: true},
	} {
		t.Run(name, func(t *testing.T) {
			s.Network, s.Transit, s.Entry = "cluster_udn_red", transit, addrs("10.128.2.2", "fd00:10:128:1::2")
			check(t, TenantServiceRows(s))
		})
	}
}
