package datapath

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"patchbay/internal/netconf"
	"patchbay/internal/netpolicy"
	"patchbay/internal/network/policy"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// policing is an Enforcer over the lab's store that knows the lab's pods by labels of their names.
type policing struct {
	*policy.Enforcer
	t *testing.T
}

func newPolicing(t *testing.T) *policing {
	p := &policing{t: t, Enforcer: policy.New(lab.store, []netip.Addr{fabric4, fabric6})}
	p.SetNetwork(policy.Network{Services: true, Addresses: true})
	for _, ns := range []string{"default", "red", "vms", "kube-system"} {
		p.SetNamespace(ns, labels.Set{"kubernetes.io/metadata.name": ns})
	}
	for _, name := range []string{"a1", "b1", "a2", "b2"} {
		p.member("default", topology.PodPort("default", name), "", name)
	}
	return p
}

// member makes a port known; its pod has the label name, and calls 9000 "web".
func (p *policing) member(namespace, port, network, name string) {
	set := labels.Set{"name": name}
	p.SetPorts(port, []policy.Port{{
		Name: port, Network: network, Primary: !strings.Contains(network, "secondary"), Namespace: namespace, Labels: set,
		Named: []policy.NamedPort{{Name: "web", Protocol: "tcp", Number: 9000}},
	}})
	p.t.Cleanup(func() { p.SetPorts(port, nil) })
}

func (p *policing) apply(kind, namespace, name string, networks []string, text string) {
	p.t.Helper()
	var spec networkingv1.NetworkPolicySpec
	must(p.t, yaml.UnmarshalStrict([]byte(text), &spec))
	key := netpolicy.Key{Kind: kind, Namespace: namespace, Name: name}
	parsed, err := netpolicy.Parse(key, networks, spec)
	must(p.t, err)
	p.SetPolicy(parsed)
	must(p.t, lab.settle())
	p.t.Cleanup(func() {
		p.RemovePolicy(key)
		must(p.t, lab.settle())
	})
}

func (p *policing) plain(namespace, text string) { p.apply(netpolicy.Plain, namespace, "p", nil, text) }

// passes asserts that connections, or datagrams, pass or do not, in both families.
func passes(t *testing.T, want bool, from, network, to string, ips []netip.Prefix, port uint16) {
	t.Helper()
	for _, ip := range ips {
		got, detail := asked(from, network, netip.AddrPortFrom(ip.Addr(), port), want)
		if got != want {
			t.Errorf("%s from %s to %s (%s) port %d: passes %v, want %v (%v)", network, from, to, ip.Addr(), port, got, want, detail)
		}
	}
}

// asked has patience only where it expects an answer: a refused packet is not answered at all.
func asked(from, network string, to netip.AddrPort, patient bool) (bool, error) {
	if patient {
		_, _, err := ask(from, network, to)
		return err == nil, err
	}
	conn, err := dialFrom(from, network, to, 400*time.Millisecond)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(400 * time.Millisecond))
	_, _ = conn.Write([]byte("?\n"))
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err == nil, err
}

func servers(t *testing.T, name string, ips []netip.Prefix, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		for _, ip := range ips {
			echoServer(t, name, netip.AddrPortFrom(ip.Addr(), port), "server-"+name)
		}
	}
}

func TestPolicyOfIngress(t *testing.T) {
	b2 := lab.pods["b2"].Network.IPs
	servers(t, "b2", b2, 9000, 9001)
	p := newPolicing(t)
	passes(t, true, "b1", "tcp", "b2", b2, 9000)
	p.plain("default", `
podSelector: {matchLabels: {name: b2}}
ingress:
- from: [{podSelector: {matchLabels: {name: a1}}}]
  ports: [{port: web}, {port: 9001, protocol: UDP}]
- from: [{ipBlock: {cidr: 10.128.0.0/14, except: [`+lab.pods["b1"].ip(true).String()+`/32]}}, {ipBlock: {cidr: fd00:10:128::/48, except: [`+lab.pods["b1"].ip(false).String()+`/128]}}]
  ports: [{port: 9001, endPort: 9010}]`)
	passes(t, true, "a1", "tcp", "b2", b2, 9000)
	passes(t, false, "a2", "tcp", "b2", b2, 9000)
	passes(t, false, "b1", "tcp", "b2", b2, 9000)
	passes(t, true, "a1", "udp", "b2", b2, 9001)
	passes(t, false, "a2", "udp", "b2", b2, 9001)
	// By block, and not the excepted one.
	passes(t, true, "a1", "tcp", "b2", b2, 9001)
	passes(t, true, "a2", "tcp", "b2", b2, 9001)
	passes(t, false, "b1", "tcp", "b2", b2, 9001)
	// Its own node reaches it for the kubelet's probes, and what it asks itself is answered.
	passes(t, true, "node-2", "tcp", "b2", b2, 9000)
	servers(t, "a1", lab.pods["a1"].Network.IPs, 9000)
	passes(t, true, "b2", "tcp", "a1", lab.pods["a1"].Network.IPs, 9000)
	if n := ping(t, "b2", fabric4.String()); n < 3 {
		t.Errorf("b2 to the outside: %d of 4 answered", n)
	}
	for _, ip := range b2 {
		if n := ping(t, "a1", ip.Addr().String(), "-c2"); n != 0 {
			t.Errorf("a policy of ports let %d echo requests to %s pass", n, ip)
		}
	}
	// Nobody else is concerned.
	servers(t, "a2", lab.pods["a2"].Network.IPs, 9000)
	passes(t, true, "b1", "tcp", "a2", lab.pods["a2"].Network.IPs, 9000)
	// What the pod is called decides, also while it runs.
	p.member("default", topology.PodPort("default", "a2"), "", "a1")
	must(t, lab.settle())
	passes(t, true, "a2", "tcp", "b2", b2, 9000)
}

func TestPolicyOfEgress(t *testing.T) {
	a2, b2 := lab.pods["a2"].Network.IPs, lab.pods["b2"].Network.IPs
	servers(t, "a2", a2, 9000, 9001)
	servers(t, "b2", b2, 9000)
	servers(t, "", []netip.Prefix{netip.PrefixFrom(fabric4, 32), netip.PrefixFrom(fabric6, 128)}, 53, 9002)
	outside := []netip.Prefix{netip.PrefixFrom(fabric4, 32), netip.PrefixFrom(fabric6, 128)}
	var endpoints []topology.Endpoint
	for _, ip := range a2 {
		endpoints = append(endpoints, topology.Endpoint{Address: netip.AddrPortFrom(ip.Addr(), 9000), Node: "node-2"})
	}
	serve(t, topology.Service{Name: "policed", ClusterIPs: vips, Ports: []topology.ServicePort{{Protocol: "tcp", Port: 80, Endpoints: endpoints}}})
	p := newPolicing(t)
	p.plain("default", `
podSelector: {matchLabels: {name: a1}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {name: a2}}, namespaceSelector: {}}]
  ports: [{port: web}]
- to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]`)
	passes(t, true, "a1", "tcp", "a2", a2, 9000)
	passes(t, false, "a1", "tcp", "a2", a2, 9001)
	passes(t, false, "a1", "tcp", "b2", b2, 9000)
	passes(t, true, "a1", "udp", "the cluster's DNS", outside, 53)
	passes(t, true, "a1", "tcp", "the cluster's DNS", outside, 53)
	passes(t, false, "a1", "tcp", "the outside", outside, 9002)
	// Policies speak of pods, also behind a service.
	passes(t, true, "a1", "tcp", "the service of a2", []netip.Prefix{netip.PrefixFrom(vip4, 32), netip.PrefixFrom(vip6, 128)}, 80)
	// Others reach it.
	servers(t, "a1", lab.pods["a1"].Network.IPs, 9003)
	passes(t, true, "b2", "tcp", "a1", lab.pods["a1"].Network.IPs, 9003)
}

// TestPolicyOfConnections: a connection that a policy allowed ends with the permission, and one that it allows goes on.
func TestPolicyOfConnections(t *testing.T) {
	const rule = "podSelector: {matchLabels: {name: b2}}\ningress: [{from: [{podSelector: {matchLabels: {name: %s}}}]}]"
	b2 := lab.pods["b2"].Network.IPs
	servers(t, "b2", b2, 9000)
	p := newPolicing(t)
	alive := func(conn net.Conn) bool {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("x\n")); err != nil {
			return false
		}
		_, err := bufio.NewReader(conn).ReadString('\n')
		return err == nil
	}
	open := func() (conns []net.Conn) {
		for _, ip := range b2 {
			conn, err := dialFrom("a1", "tcp", netip.AddrPortFrom(ip.Addr(), 9000), 3*time.Second)
			must(t, err)
			t.Cleanup(func() { conn.Close() })
			_, err = bufio.NewReader(conn).ReadString('\n')
			must(t, err)
			conns = append(conns, conn)
		}
		return conns
	}
	before := open() // before any policy
	p.plain("default", fmt.Sprintf(rule, "a1"))
	during := open()
	for _, conn := range append(before, during...) {
		if !alive(conn) {
			t.Errorf("the connection to %s broke though the policy allows it", conn.RemoteAddr())
		}
	}
	p.plain("default", fmt.Sprintf(rule, "a2"))
	for _, conn := range during {
		if alive(conn) {
			t.Errorf("the connection to %s goes on though the policy does not allow it any more", conn.RemoteAddr())
		}
	}
}

// TestPolicyFromTheFirstPacket: a pod that comes after its policy is never without it.
func TestPolicyFromTheFirstPacket(t *testing.T) {
	p := newPolicing(t)
	p.plain("default", "podSelector: {matchLabels: {name: new}}\npolicyTypes: [Ingress, Egress]")
	p.member("default", topology.PodPort("default", "new1"), "", "new")
	must(t, lab.startPod("new1", "node-1", 30))
	t.Cleanup(func() {
		lab.store.Delete("pod/new1")
		delete(lab.pods, "new1")
		must(t, run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port v-new1; ip netns del new1", path("node-1", "db.sock"))))
	})
	for _, ip := range lab.pods["a1"].Network.IPs {
		if n := ping(t, "new1", ip.Addr().String()); n != 0 {
			t.Errorf("%d of its first packets reached %s", n, ip)
		}
	}
}

// TestGuestsUnderDenyAll: a guest that nobody may reach, and that may reach nobody, has addresses, neighbours and its node; on a tenant's
// network as on one without a router.
func TestGuestsUnderDenyAll(t *testing.T) {
	const denyAll = "podSelector: {matchLabels: {name: closed}}\npolicyTypes: [Ingress, Egress]"
	n := routed("closed-net", 111)
	n.Management = []netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("fd00:20::2")}
	setNetwork(t, n)
	p := newPolicing(t)
	p.SetNetwork(policy.Network{Name: n.Name, Services: true, Addresses: true, Nodes: n.Management})
	for i, name := range []string{"closed", "other"} {
		p.member("vms", topology.NICPort("vms", name, "default"), n.Name, name)
		g := newGuest(t, name, []string{"node-1", "node-2"}[i], n, 60+i)
		for _, ip := range g.IPs {
			must(t, run(fmt.Sprintf("ip -n %s addr add %s dev eth0 nodad", name, ip)))
		}
		servers(t, name, g.IPs, 9000)
		if name == "other" {
			continue
		}
		p.plain("vms", denyAll)
		must(t, inside(name, func() error {
			checkDHCP4(t, g, map[dhcpv4.OptionCode]string{dhcpv4.OptionRouter: "10.20.0.1"})
			checkDHCP6(t, g, "fd00:10:96::a", "vms.svc.cluster.local")
			checkAdvertisement(t, g)
			return nil
		}))
		node := access(t, "node-1", n)
		passes(t, true, node, "tcp", name, g.IPs, 9000)
	}
	both := []netip.Prefix{netip.MustParsePrefix("10.20.0.60/32"), netip.MustParsePrefix("fd00:20::3c/128")}
	passes(t, false, "other", "tcp", "closed", both, 9000)
	for _, from := range []struct{ name, to string }{{"other", "10.20.0.60"}, {"other", "fd00:20::3c"}, {"closed", "10.20.0.61"}, {"closed", "fd00:20::3d"}} {
		if got := ping(t, from.name, from.to, "-c2"); got != 0 {
			t.Errorf("%s reached %s: %d echo replies", from.name, from.to, got)
		}
		// The neighbour itself is found.
		out, _ := exec.Command("ip", "-n", from.name, "neigh", "show", "to", from.to).CombinedOutput()
		if !strings.Contains(string(out), "lladdr") {
			t.Errorf("%s does not find its neighbour %s: %q", from.name, from.to, out)
		}
	}
}

// access plugs a node into a network as the agent does, in a namespace of its own.
func access(t *testing.T, node string, n topology.Network) (where string) {
	t.Helper()
	where = "access-" + node
	var ips []netip.Prefix
	for i, a := range n.Management {
		ips = append(ips, netip.PrefixFrom(a, n.Subnets[i].Bits()))
	}
	must(t, run("ip netns add "+where))
	t.Cleanup(func() {
		_ = run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port v-%s; ip netns del %s", path(node, "db.sock"), where, where))
	})
	must(t, lab.attach(where, node, topology.AccessPort(n.Name), "", podnetworks.Network{MAC: podnetworks.MAC(n.Management[0]), MTU: n.MTU, IPs: ips}))
	must(t, lab.settle())
	return where
}

// TestMultiPolicyOfABareNetwork: where a network gives no addresses, blocks decide.
func TestMultiPolicyOfABareNetwork(t *testing.T) {
	n := topology.Network{Name: "bare-secondary", ID: 112, Topology: netconf.Layer2, Role: podnetworks.Secondary, MTU: 1400}
	setNetwork(t, n)
	p := newPolicing(t)
	p.SetNetwork(policy.Network{Name: n.Name})
	p.apply(netpolicy.Multi, "vms", "multi", []string{n.Name}, `
podSelector: {matchLabels: {name: served}}
policyTypes: [Ingress]
ingress:
- from: [{ipBlock: {cidr: 192.168.7.0/24, except: [192.168.7.3/32]}}, {ipBlock: {cidr: 'fd07::/64', except: ['fd07::3/128']}}]
  ports: [{port: 9000}]
- from: [{podSelector: {}}]`)
	addresses := map[string][]netip.Prefix{}
	for i, name := range []string{"served", "friend", "except"} {
		p.member("vms", topology.NICPort("vms", name, "default"), n.Name, name)
		newGuest(t, name, []string{"node-1", "node-2", "node-2"}[i], n, 71+i)
		for _, ip := range []string{fmt.Sprintf("192.168.7.%d/24", i+1), fmt.Sprintf("fd07::%d/64", i+1)} {
			must(t, run(fmt.Sprintf("ip -n %s addr add %s dev eth0 nodad", name, ip)))
			addresses[name] = append(addresses[name], netip.MustParsePrefix(ip))
		}
	}
	servers(t, "served", addresses["served"], 9000, 9001)
	servers(t, "friend", addresses["friend"], 9000)
	passes(t, true, "friend", "tcp", "served", addresses["served"], 9000)
	passes(t, false, "friend", "tcp", "served", addresses["served"], 9001)
	passes(t, false, "except", "tcp", "served", addresses["served"], 9000)
	passes(t, true, "served", "tcp", "friend", addresses["friend"], 9000)
	// Nobody gets in with the address under which pods meet themselves through services.
	must(t, run("ip -n except addr add 169.254.169.5/32 dev eth0; ip -n served route add 169.254.169.5/32 dev eth0"))
	if n := ping(t, "except", "192.168.7.1", "-I", "169.254.169.5", "-c2"); n != 0 {
		t.Errorf("%d packets got past the policy with a made-up address", n)
	}
}

// TestPolicyOutlivesTheDatabase: a Northbound database that was lost comes back with its policies, and is not open in between.
func TestPolicyOutlivesTheDatabase(t *testing.T) {
	b2 := lab.pods["b2"].Network.IPs
	servers(t, "b2", b2, 9000)
	p := newPolicing(t)
	p.plain("default", "podSelector: {matchLabels: {name: b2}}\ningress: [{from: [{podSelector: {matchLabels: {name: a1}}}]}]")
	restart(t, "nb", func() {
		must(t, os.Remove(path("central", "nb.db")))
		must(t, createDatabase("nb"))
	})
	passes(t, false, "b1", "tcp", "b2", b2, 9000)
	must(t, lab.settle())
	passes(t, true, "a1", "tcp", "b2", b2, 9000)
	passes(t, false, "b1", "tcp", "b2", b2, 9000)
}
