package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// tenant is a primary network with one pod on each node. All tenants of the lab use the same ranges and addresses.
type tenant struct {
	gateway topology.Gateway
	pods    []*labPod // by node
}

var (
	tenantSubnets  = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/64")}
	tenantGateways = []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("fd00:20::1")}
)

// startTenants makes two: red with its gateway on node-1 and blue with its gateway on node-2.
func (l *theLab) startTenants() error {
	for i, name := range []string{"red", "blue"} {
		t := &tenant{gateway: topology.Gateway{
			Network: name, ID: i + 1, Subnets: tenantSubnets, Chassis: []string{l.nodes[i].Name}, Switches: []string{topology.NetworkSwitch(name)},
		}}
		l.tenants[name] = t
		t.apply()
		for i, node := range l.nodes {
			if err := t.startPod(fmt.Sprintf("%s%d", name, i+1), node.Name, i); err != nil {
				return fmt.Errorf("pod %s%d: %w", name, i+1, err)
			}
		}
	}
	return l.settle()
}

func (t *tenant) network() topology.Network {
	return topology.Network{
		Name: t.name(), ID: t.gateway.ID, Topology: netconf.Layer2, Role: podnetworks.Primary, MTU: lab.settings.PodMTU,
		Subnets: tenantSubnets, Gateways: tenantGateways, Namespaces: []string{t.name()},
		DNS: lab.settings.ClusterDNS, Domain: lab.settings.ClusterDomain,
	}
}

// port are the rows of a pod's port: those of a machine, which may move.
func (t *tenant) port(p *labPod, chassis ...string) []nb.Row {
	return topology.NICRows(topology.NIC{
		Namespace: t.name(), VMI: p.Name, Name: "default", Network: t.network(), MAC: p.Network.MAC, IPs: p.Network.IPs, Chassis: chassis,
	})
}

func (t *tenant) name() string { return t.gateway.Network }

func (t *tenant) apply() {
	lab.store.Set("network/"+t.name(), topology.NetworkRows(t.network()))
	lab.store.Set("gateway/"+t.name(), topology.GatewayRows(t.gateway))
	for _, p := range t.pods {
		lab.store.Set("nic/"+p.Name, t.port(p, p.Node))
	}
}

func (t *tenant) startPod(name, node string, index int) error {
	p := &labPod{netns: name, Pod: topology.Pod{Namespace: t.name(), Name: name, Node: node}}
	p.Network = podnetworks.Network{MTU: lab.settings.PodMTU, Gateways: tenantGateways}
	for _, subnet := range tenantSubnets {
		ip := subnet.Addr()
		for range 11 + index {
			ip = ip.Next()
		}
		p.Network.IPs = append(p.Network.IPs, netip.PrefixFrom(ip, subnet.Bits()))
	}
	p.Network.MAC = podnetworks.MAC(p.Network.IPs[0].Addr())
	t.pods = append(t.pods, p)
	lab.store.Set("nic/"+name, t.port(p, node))
	if err := lab.plug(name, node, topology.NICPort(t.name(), name, "default"), "", p.Network); err != nil {
		return err
	}
	// As in a pod that has a leg in the default network, which leads nowhere: answers must not depend on it.
	return run(fmt.Sprintf("ip -n %[1]s route add blackhole 10.128.0.0/14; ip -n %[1]s route add blackhole 100.64.0.0/16; ip -n %[1]s -6 route add blackhole fd00:10:128::/48; ip -n %[1]s -6 route add blackhole fd98::/64", name))
}

// TestTenantsLeaveThroughTheirGateway: from both nodes, in both families, with the address of the gateway's node.
func TestTenantsLeaveThroughTheirGateway(t *testing.T) {
	for _, at := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(at, 7778), "fabric")
	}
	for i, name := range []string{"red", "blue"} {
		gateway := lab.nodes[i]
		for _, pod := range lab.tenants[name].pods {
			for outside, want := range map[netip.Addr]netip.Addr{fabric4: gateway.fabric4, fabric6: gateway.fabric6} {
				_, seen, err := ask(pod.netns, "tcp", netip.AddrPortFrom(outside, 7778))
				if err != nil || seen != want {
					t.Errorf("%s to %s came from %s (error %v), want the gateway's node %s", pod.Name, outside, seen, err, want)
				}
				if n := ping(t, pod.netns, outside.String()); n < 3 {
					t.Errorf("%s to %s: %d of 4 answered", pod.Name, outside, n)
				}
			}
		}
	}
}

func TestTenantsReachThemselves(t *testing.T) {
	for _, name := range []string{"red", "blue"} {
		pods := lab.tenants[name].pods
		pods[1].each(func(family string, ip netip.Addr) {
			if n := ping(t, pods[0].netns, ip.String()); n < 3 {
				t.Errorf("%s: %s to %s: %d of 4 answered", family, pods[0].Name, pods[1].Name, n)
			}
		})
	}
}

// entry is where the gateway's node takes traffic from other nodes.
func (t *tenant) entry() []netip.Addr {
	var out []netip.Addr
	for _, n := range lab.nodes {
		if n.Name == t.gateway.Chassis[0] {
			for _, subnet := range n.Subnets {
				out = append(out, podnetworks.Management(subnet))
			}
		}
	}
	return out
}
