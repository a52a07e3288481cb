package topology

import (
	"net/netip"
	"testing"
)

func endpoint(address, node string, state EndpointState) Endpoint {
	return Endpoint{Address: netip.MustParseAddrPort(address), Node: node, State: state}
}

func TestService(t *testing.T) {
	dual := addrs("10.96.3.4", "fd00:10:96::34")
	web := []Endpoint{
		endpoint("10.128.0.5:8080", "node-1", Ready), endpoint("10.128.2.5:8080", "node-2", Ready),
		endpoint("[fd00:10:128::5]:8080", "node-1", Ready), endpoint("[fd00:10:128:1::5]:8080", "node-2", Ready),
	}
	dns := []Endpoint{endpoint("172.30.0.1:53", "", Ready), endpoint("[fd00:172:30::1]:53", "", Ready)}
	mixed := []Endpoint{
		endpoint("10.128.0.5:8080", "node-1", NotReady), endpoint("10.128.0.6:8080", "node-1", ServingTerminating),
		endpoint("10.128.2.5:8080", "node-2", Ready),
	}
	old := []Endpoint{mixed[0], mixed[1]}
	tcp := func(endpoints []Endpoint) []ServicePort {
		return []ServicePort{{Protocol: "tcp", Port: 80, Endpoints: endpoints}}
	}

	cases := map[string]Service{
		"dual":                {ClusterIPs: dual, Ports: tcp(web)},
		"tcp and udp":         {ClusterIPs: dual, Ports: []ServicePort{{Protocol: "udp", Port: 53, Endpoints: dns}, {Protocol: "tcp", Port: 53, Endpoints: dns}}},
		"sctp":                {ClusterIPs: dual[:1], Ports: []ServicePort{{Protocol: "sctp", Port: 36412, Endpoints: web[:1]}}},
		"no endpoints":        {ClusterIPs: dual, Ports: tcp(nil)},
		"not ready":           {ClusterIPs: dual[:1], Ports: tcp(mixed)},
		"only terminating":    {ClusterIPs: dual[:1], Ports: tcp(old)},
		"publish not ready":   {ClusterIPs: dual[:1], AnyReadiness: true, Ports: tcp(mixed)},
		"affinity":            {ClusterIPs: dual[:1], Affinity: true, Ports: tcp(web)},
		"external addresses":  {ClusterIPs: dual[:1], ExternalIPs: addrs("192.0.2.7"), Ports: tcp(web)},
		"internal local":      {ClusterIPs: dual, InternalLocal: true, Ports: tcp(web)},
		"local fallback":      {ClusterIPs: dual[:1], InternalLocal: true, Ports: tcp(mixed)},
		"host network":        {ClusterIPs: dual[:1], Ports: tcp([]Endpoint{endpoint("172.30.0.1:6443", "", Ready)})},
		"for tenants":         {ClusterIPs: dual, ForTenants: true, Ports: []ServicePort{{Protocol: "tcp", Port: 53, Endpoints: dns}}},
		"without a clusterIP": {Ports: tcp(web)},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			s.Namespace, s.Name = "default", "web"
			check(t, ServiceRows(s, []string{"node-1", "node-2"}))
		})
	}
}
