package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// unreachable asserts that neither echo requests nor connections from a namespace are answered.
func unreachable(t *testing.T, from, what string, to netip.Addr, port uint16) {
	t.Helper()
	if n := ping(t, from, to.String(), "-c2"); n != 0 {
		t.Errorf("%s reached %s at %s: %d echo replies", from, what, to, n)
	}
	if conn, err := dialFrom(from, "tcp", netip.AddrPortFrom(to, port), 500*time.Millisecond); err == nil {
		conn.Close()
		t.Errorf("%s connected to %s at %s", from, what, to)
	}
}

// TestTenantsAreApart: tenants with the same ranges reach their own pods under those addresses, and nothing of each other or
// of the default network.
func TestTenantsAreApart(t *testing.T) {
	red, blue := lab.tenants["red"], lab.tenants["blue"]
	for _, tenant := range []*tenant{red, blue} {
		tenant.pods[1].each(func(_ string, ip netip.Addr) {
			echoServer(t, tenant.pods[1].netns, netip.AddrPortFrom(ip, 9000), tenant.pods[1].Name)
		})
	}
	lab.pods["a2"].each(func(_ string, ip netip.Addr) { echoServer(t, "a2", netip.AddrPortFrom(ip, 9000), "a2") })

	for _, tenant := range []*tenant{red, blue} {
		tenant.pods[1].each(func(_ string, ip netip.Addr) {
			if got := answers(t, tenant.pods[0].netns, "tcp", netip.AddrPortFrom(ip, 9000), 3); got[tenant.pods[1].Name] != 3 {
				t.Errorf("%s at %s: answered by %v", tenant.name(), ip, got)
			}
			for _, from := range []string{"a1", "a2"} {
				unreachable(t, from, tenant.name(), ip, 9000)
			}
		})
	}
	for _, from := range []*labPod{red.pods[0], red.pods[1], blue.pods[0]} {
		lab.pods["a2"].each(func(_ string, ip netip.Addr) { unreachable(t, from.netns, "a pod of the default network", ip, 9000) })
	}
	for _, transit := range topology.TransitAddresses(red.gateway.ID, tenantSubnets) {
		unreachable(t, blue.pods[0].netns, "red's transit address", transit, 9000)
		unreachable(t, blue.pods[1].netns, "red's transit address", transit, 9000)
		unreachable(t, "a1", "red's transit address", transit, 9000)
		unreachable(t, "a2", "red's transit address", transit, 9000)
	}
}

// TestLockedLeg: the default-network leg of a pod whose primary network is a tenant's.
func TestLockedLeg(t *testing.T) {
	leg := startLeg(t, "leg1", nil)
	leg.each(func(family string, ip netip.Addr) {
		echoServer(t, "leg1", netip.AddrPortFrom(ip, 8080), "leg1")
		if name, _, err := ask("node-1", "tcp", netip.AddrPortFrom(ip, 8080)); name != "leg1" {
			t.Errorf("%s: the pod's own node got %q, error %v: the kubelet could not probe it", family, name, err)
		}
		for _, from := range []string{"b1", "a2", "node-2", lab.tenants["red"].pods[0].netns} {
			unreachable(t, from, "the locked leg", ip, 8080)
		}
	})
	for _, name := range []string{"b1", "a2"} {
		lab.pods[name].each(func(_ string, ip netip.Addr) {
			echoServer(t, name, netip.AddrPortFrom(ip, 8080), name)
			unreachable(t, "leg1", name, ip, 8080)
		})
	}
	for _, at := range []netip.Addr{fabric4, fabric6} {
		unreachable(t, "leg1", "the outside", at, 8080)
	}
}

func TestLockedLegWithOpenPorts(t *testing.T) {
	leg := startLeg(t, "leg2", []topology.OpenPort{{Protocol: "tcp", Port: 8080}, {Protocol: "icmp"}})
	leg.each(func(family string, ip netip.Addr) {
		echoServer(t, "leg2", netip.AddrPortFrom(ip, 8080), "leg2")
		echoServer(t, "leg2", netip.AddrPortFrom(ip, 8081), "leg2")
		for _, from := range []string{"b1", "a2"} {
			if name, _, err := ask(from, "tcp", netip.AddrPortFrom(ip, 8080)); name != "leg2" {
				t.Errorf("%s: %s asked the open port and got %q, error %v", family, from, name, err)
			}
			if n := ping(t, from, ip.String()); n < 3 {
				t.Errorf("%s: %s to the leg, whose ICMP is open: %d of 4 answered", family, from, n)
			}
			if _, _, err := ask(from, "tcp", netip.AddrPortFrom(ip, 8081)); err == nil {
				t.Errorf("%s: %s reached a port that is not open", family, from)
			}
		}
	})
	lab.pods["b1"].each(func(_ string, ip netip.Addr) {
		echoServer(t, "b1", netip.AddrPortFrom(ip, 8080), "b1")
		unreachable(t, "leg2", "b1", ip, 8080)
	})
}

// startLeg makes a pod on node-1 whose default network is locked. Its routes lead to the default network only, and here
// to the outside too, so that it is the overlay that refuses.
func startLeg(t *testing.T, name string, open []topology.OpenPort) *labPod {
	t.Helper()
	if err := lab.startPod(name, "node-1", 20+len(open), func(p *labPod) {
		p.Network.Role, p.OpenPorts = podnetworks.InfrastructureLocal, open
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lab.store.Delete("pod/" + name)
		delete(lab.pods, name)
		if err := run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port br-int v-%s; ip netns del %s", path("node-1", "db.sock"), name, name)); err != nil {
			t.Error(err)
		}
	})
	if err := lab.settle(); err != nil {
		t.Fatal(err)
	}
	return lab.pods[name]
}

// tenantBackends starts a server on each pod of a tenant.
func tenantBackends(t *testing.T, from *tenant, port uint16) []topology.Endpoint {
	t.Helper()
	var endpoints []topology.Endpoint
	for _, p := range from.pods {
		p.each(func(_ string, ip netip.Addr) {
			at := netip.AddrPortFrom(ip, port)
			echoServer(t, p.netns, at, p.Name)
			endpoints = append(endpoints, topology.Endpoint{Address: at, Node: p.Node})
		})
	}
	return endpoints
}

// serveTenant hands the rows of a tenant's service to the store and takes them away with the test.
func serveTenant(t *testing.T, of *tenant, exposed bool, s topology.Service) {
	t.Helper()
	s.Namespace = of.name()
	owner := "service/" + s.Namespace + "/" + s.Name
	lab.store.Set(owner, topology.TenantServiceRows(topology.TenantService{
		Service: s, Network: of.name(), Transit: topology.TransitAddresses(of.gateway.ID, tenantSubnets), Exposed: exposed, Entry: of.entry(),
	}))
	t.Cleanup(func() { lab.store.Delete(owner) })
	if err := lab.settle(); err != nil {
		t.Fatal(err)
	}
}

// TestTenantService: a service of a tenant's network balances there and exists nowhere else.
func TestTenantService(t *testing.T) {
	red, blue := lab.tenants["red"], lab.tenants["blue"]
	endpoints := tenantBackends(t, red, 8080)
	serveTenant(t, red, false, topology.Service{Name: "web", ClusterIPs: vips, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 80, Endpoints: endpoints}, {Protocol: "udp", Port: 80, Endpoints: endpoints}, {Protocol: "tcp", Port: 81},
	}})
	for _, vip := range vips {
		at := netip.AddrPortFrom(vip, 80)
		for _, from := range red.pods {
			for _, network := range []string{"tcp", "udp"} {
				got := answers(t, from.netns, network, at, 30)
				if got["red1"] == 0 || got["red2"] == 0 || got["red1"]+got["red2"] != 30 {
					t.Errorf("%s from %s to %s: answered by %v, want red1 and red2", network, from.Name, vip, got)
				}
			}
			if _, _, err := ask(from.netns, "tcp", netip.AddrPortFrom(vip, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s to %s without endpoints: error %v, want refused", from.Name, vip, err)
			}
		}
		for _, from := range blue.pods {
			began := time.Now()
			if _, _, err := ask(from.netns, "tcp", at); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) > time.Second {
				t.Errorf("%s to red's service %s: error %v after %s, want refused at once", from.Name, vip, err, time.Since(began))
			}
		}
		for _, from := range []string{"a1", "a2", "node-1", "node-2"} {
			if name, _, err := ask(from, "tcp", at); err == nil {
				t.Errorf("%s reached red's service %s and got %s", from, vip, name)
			}
		}
	}
}

// TestTenantsDoNotReachServicesOfTheDefaultNetwork, but those that are meant for them.
func TestTenantsDoNotReachServicesOfTheDefaultNetwork(t *testing.T) {
	serve(t, topology.Service{Name: "web", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: backends(t, 8080, "b1", "a2")}}})
	for _, vip := range vips {
		for _, from := range lab.tenants["red"].pods {
			if _, _, err := ask(from.netns, "tcp", netip.AddrPortFrom(vip, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s to %s: error %v, want refused", from.Name, vip, err)
			}
		}
	}
}

func TestTenantsReachTheClustersOwnServices(t *testing.T) {
	var endpoints []topology.Endpoint
	for _, at := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(at, 6444), "api")
		endpoints = append(endpoints, topology.Endpoint{Address: netip.AddrPortFrom(at, 6444)})
	}
	serve(t, topology.Service{Name: "kubernetes", ClusterIPs: vips, ForTenants: true, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 443, Endpoints: endpoints}, {Protocol: "udp", Port: 53, Endpoints: endpoints},
	}})
	for _, vip := range vips {
		for _, from := range []string{"red1", "red2", "blue1", "blue2", "a1", "a2"} {
			for network, port := range map[string]uint16{"tcp": 443, "udp": 53} {
				if got := answers(t, from, network, netip.AddrPortFrom(vip, port), 5); got["api"] != 5 {
					t.Errorf("%s from %s to %s: answered by %v", network, from, vip, got)
				}
			}
		}
	}
}

// TestTenantServiceFromOutside: a node port of a tenant's service answers at every node, to anybody.
func TestTenantServiceFromOutside(t *testing.T) {
	red := lab.tenants["red"]
	serveTenant(t, red, true, topology.Service{Name: "shop", ClusterIPs: tenantVIPs, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 80, Endpoints: tenantBackends(t, red, 8080)},
	}})
	nodePort(t, 30080, tenantVIPs, 80)
	for _, node := range lab.nodes {
		for _, ip := range []netip.Addr{node.fabric4, node.fabric6} {
			all := map[string]int{}
			for _, from := range []string{"", "a1", "a2", "red1", "red2", "blue1", "blue2"} {
				got := answers(t, from, "tcp", netip.AddrPortFrom(ip, 30080), 12)
				if got["red1"]+got["red2"] != 12 {
					t.Errorf("from %q to the node port at %s: answered by %v, want red1 and red2", from, ip, got)
				}
				all["red1"] += got["red1"]
				all["red2"] += got["red2"]
			}
			if all["red1"] == 0 || all["red2"] == 0 {
				t.Errorf("the node port at %s does not balance: answered by %v", ip, all)
			}
		}
	}
	for _, vip := range tenantVIPs {
		for _, from := range []string{"a1", "a2", "blue1", "blue2"} {
			if name, _, err := ask(from, "tcp", netip.AddrPortFrom(vip, 80)); err == nil {
				t.Errorf("%s reached the cluster IP %s of red's service and got %s", from, vip, name)
			}
		}
	}
}

// tenantVIPs are the cluster IPs of tenants' services that nodes send traffic to.
var tenantVIPs = []netip.Addr{netip.MustParseAddr("10.96.2.2"), netip.MustParseAddr("fd00:10:96::22")}

// nodePort translates a port of both nodes, as the agent's rules do.
func nodePort(t *testing.T, port uint16, vips []netip.Addr, target uint16) {
	t.Helper()
	for _, node := range lab.nodes {
		rules := "add table inet nodeport; add chain inet nodeport pre { type nat hook prerouting priority -100; }\n"
		for i, own := range []netip.Addr{node.fabric4, node.fabric6} {
			family := []string{"ip", "ip6"}[i]
			rules += fmt.Sprintf("add rule inet nodeport pre %s daddr %s tcp dport %d dnat %s to %s\n", family, own, port, family, netip.AddrPortFrom(vips[i], target))
		}
		if err := run(fmt.Sprintf("nsenter --net=%s nft '%s'", namespace(node.Name), rules)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := run(fmt.Sprintf("nsenter --net=%s nft delete table inet nodeport", namespace(node.Name))); err != nil {
				t.Error(err)
			}
		})
	}
}
