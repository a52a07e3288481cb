package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// layer3 is a network with a slice for each node, and one pod there.
type layer3 struct {
	network topology.Network
	pods    []*labPod // by node
}

// newLayer3 uses the ranges of the other tenants, cut into slices, so that nothing that matches addresses alone tells them apart.
func newLayer3(t *testing.T, name string, id int, role podnetworks.Role) *layer3 {
	t.Helper()
	l := &layer3{network: topology.Network{
		Name: name, ID: id, Topology: netconf.Layer3, Role: role, MTU: lab.settings.PodMTU,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/48")}, Namespaces: []string{name},
	}}
	for i, node := range lab.nodes {
		l.network.Slices = append(l.network.Slices, topology.NodeSlice{Node: node.Name, Subnets: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.20.%d.0/24", 100+i)), netip.MustParsePrefix(fmt.Sprintf("fd00:20:0:%d::/64", 1+i)),
		}})
	}
	if role == podnetworks.Primary {
		lab.store.Set("gateway/"+name, topology.GatewayRows(topology.Gateway{
			Network: name, ID: id, Subnets: l.network.Subnets, Switches: l.network.Switches(), Chassis: []string{"node-2"},
		}))
		t.Cleanup(func() { lab.store.Delete("gateway/" + name) })
	}
	setNetwork(t, l.network)
	for i, slice := range l.network.Slices {
		l.startPod(t, fmt.Sprintf("%s%d", name, i+1), slice)
	}
	must(t, lab.settle())
	return l
}

func (l *layer3) startPod(t *testing.T, name string, slice topology.NodeSlice) {
	t.Helper()
	p := &labPod{netns: name, Pod: topology.Pod{Namespace: l.network.Name, Name: name, Node: slice.Node}}
	p.Network = podnetworks.Network{MTU: l.network.MTU, Gateways: slice.Gateways()}
	for _, subnet := range slice.Subnets {
		ip := podnetworks.Management(subnet)
		for range 9 {
			ip = ip.Next()
		}
		p.Network.IPs = append(p.Network.IPs, netip.PrefixFrom(ip, subnet.Bits()))
	}
	p.Network.MAC = podnetworks.MAC(p.Network.IPs[0].Addr())
	a := topology.Attachment{
		Key: p.Namespace + "/net", Namespace: p.Namespace, Pod: name, UID: "uid-1", Node: p.Node, Network: l.network,
		MAC: p.Network.MAC, IPs: p.Network.IPs,
	}
	lab.store.Set("pod/"+name, topology.AttachmentRows(a))
	t.Cleanup(func() {
		lab.store.Delete("pod/" + name)
		_ = run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port v-%s; ip netns del %s", path(p.Node, "db.sock"), name, name))
	})
	must(t, lab.plug(name, p.Node, topology.AttachmentPort(a.Key, a.Namespace, a.Pod), "uid-1", p.Network))
	l.pods = append(l.pods, p)
}

func (l *layer3) reachEachOther(t *testing.T) {
	t.Helper()
	for _, from := range l.pods {
		for _, to := range l.pods {
			if to == from {
				continue
			}
			to.each(func(family string, ip netip.Addr) {
				if n := ping(t, from.netns, ip.String()); n < 3 {
					t.Errorf("%s: %s to %s: %d of 4 answered", family, from.Name, to.Name, n)
				}
			})
		}
	}
}

// TestLayer3: pods in the slices of two nodes reach each other, services and the outside, and nobody reaches them.
func TestLayer3(t *testing.T) {
	l := newLayer3(t, "sliced", 201, podnetworks.Primary)
	l.reachEachOther(t)

	for _, at := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(at, 7779), "fabric")
	}
	gateway := lab.nodes[1]
	for _, pod := range l.pods {
		for outside, want := range map[netip.Addr]netip.Addr{fabric4: gateway.fabric4, fabric6: gateway.fabric6} {
			if _, seen, err := ask(pod.netns, "tcp", netip.AddrPortFrom(outside, 7779)); err != nil || seen != want {
				t.Errorf("%s to %s came from %s (error %v), want the gateway's node %s", pod.Name, outside, seen, err, want)
			}
		}
	}

	var endpoints []topology.Endpoint
	for _, p := range l.pods {
		p.each(func(_ string, ip netip.Addr) {
			echoServer(t, p.netns, netip.AddrPortFrom(ip, 8080), p.Name)
			endpoints = append(endpoints, topology.Endpoint{Address: netip.AddrPortFrom(ip, 8080), Node: p.Node})
		})
	}
	l.serve(t, false, topology.Service{Name: "web", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: endpoints}}})
	for _, vip := range vips {
		for _, from := range l.pods {
			got := answers(t, from.netns, "tcp", netip.AddrPortFrom(vip, 80), 30)
			if got["sliced1"] == 0 || got["sliced2"] == 0 || got["sliced1"]+got["sliced2"] != 30 {
				t.Errorf("%s to %s: answered by %v, want both pods", from.Name, vip, got)
			}
		}
		if name, _, err := ask(lab.tenants["red"].pods[0].netns, "tcp", netip.AddrPortFrom(vip, 80)); err == nil {
			t.Errorf("another tenant reached %s and got %s", vip, name)
		}
	}
	l.exposes(t, endpoints)
	l.pods[0].each(func(_ string, ip netip.Addr) {
		for _, from := range []string{"a1", "a2", lab.tenants["red"].pods[0].netns, lab.tenants["blue"].pods[1].netns} {
			unreachable(t, from, "a pod of a layer3 network", ip, 8080)
		}
	})
}

// serve hands the rows of a service to the store and takes them away with the test. The network's gateway is on node-2.
func (l *layer3) serve(t *testing.T, exposed bool, s topology.Service) {
	t.Helper()
	s.Namespace = l.network.Name
	owner := "service/" + s.Namespace + "/" + s.Name
	out := topology.TenantService{
		Service: s, Network: l.network.Name, Layer3: true, Transit: topology.TransitAddresses(l.network.ID, l.network.Subnets), Exposed: exposed,
	}
	for _, subnet := range lab.nodes[1].Subnets {
		out.Entry = append(out.Entry, podnetworks.Management(subnet))
	}
	for _, slice := range l.network.Slices {
		out.Nodes = append(out.Nodes, slice.Node)
	}
	lab.store.Set(owner, topology.TenantServiceRows(out))
	t.Cleanup(func() { lab.store.Delete(owner) })
	must(t, lab.settle())
}

// exposes checks a service with a node port and internalTrafficPolicy Local: from outside and from other tenants every node leads to
// all pods, inside a pod reaches those of its own node.
func (l *layer3) exposes(t *testing.T, endpoints []topology.Endpoint) {
	t.Helper()
	shop := topology.Service{Name: "shop", ClusterIPs: tenantVIPs, InternalLocal: true, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: endpoints}}}
	l.serve(t, true, shop)
	nodePort(t, 30081, tenantVIPs, 80)
	for _, node := range lab.nodes {
		for _, ip := range []netip.Addr{node.fabric4, node.fabric6} {
			all := map[string]int{}
			for _, from := range []string{"", "a1", "red2", "blue1", l.pods[0].netns, l.pods[1].netns} {
				for name, n := range answers(t, from, "tcp", netip.AddrPortFrom(ip, 30081), 12) {
					all[name] += n
				}
			}
			if all["sliced1"] == 0 || all["sliced2"] == 0 || all["sliced1"]+all["sliced2"] != 6*12 {
				t.Errorf("the node port at %s: answered by %v, want both pods, 72 times", ip, all)
			}
		}
	}
	for _, vip := range tenantVIPs {
		for _, from := range l.pods {
			if got := answers(t, from.netns, "tcp", netip.AddrPortFrom(vip, 80), 6); got[from.Name] != 6 {
				t.Errorf("%s to %s: answered by %v, want the pod of its own node", from.Name, vip, got)
			}
		}
		for _, from := range []string{"a1", "red1"} {
			if name, _, err := ask(from, "tcp", netip.AddrPortFrom(vip, 80)); err == nil {
				t.Errorf("%s reached the cluster IP %s and got %s", from, vip, name)
			}
		}
	}
	shop.Ports[0].Endpoints = endpoints[:2] // those of the first pod
	l.serve(t, true, shop)
	for _, vip := range tenantVIPs {
		if _, _, err := ask(l.pods[1].netns, "tcp", netip.AddrPortFrom(vip, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to %s: error %v, want refused: its node has no endpoint", l.pods[1].Name, vip, err)
		}
	}
	for _, node := range lab.nodes {
		for _, ip := range []netip.Addr{node.fabric4, node.fabric6} {
			if got := answers(t, "", "tcp", netip.AddrPortFrom(ip, 30081), 4); got["sliced1"] != 4 {
				t.Errorf("the node port at %s: answered by %v, want the only pod", ip, got)
			}
		}
	}
}

// TestLayer3Secondary: the slices are connected, and lead nowhere else.
func TestLayer3Secondary(t *testing.T) {
	l := newLayer3(t, "side", 202, podnetworks.Secondary)
	l.reachEachOther(t)
	for _, outside := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(outside, 7780), "fabric")
		unreachable(t, l.pods[0].netns, "the outside", outside, 7780)
	}
}
