package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/ovn"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

// theLab is the fabric, which is this process's own namespace, with OVN's databases and northd in it, and two nodes.
type theLab struct {
	settings settings.Settings
	nodes    []*labNode
	pods     map[string]*labPod
	services map[string][]nb.Row // by owner
	tenants  map[string]*tenant
	daemons  map[string]*daemon

	store *ovn.Store
	stop  func() // kills the store
}

// labNode is a node: a namespace of the same name with Open vSwitch and ovn-controller.
type labNode struct {
	topology.Node
	fabric4, fabric6 netip.Addr
}

// labPod is a pod: a namespace of the same name with one interface on the default network.
type labPod struct {
	topology.Pod
	netns string
}

func (p *labPod) ip(is4 bool) netip.Addr {
	for _, ip := range p.Network.IPs {
		if ip.Addr().Is4() == is4 {
			return ip.Addr()
		}
	}
	return netip.Addr{}
}

var (
	lab     *theLab
	fabric4 = netip.MustParseAddr("172.30.0.1")
	fabric6 = netip.MustParseAddr("fd00:172:30::1")
)

func startLab() error {
	lab = &theLab{settings: settings.Default(), pods: map[string]*labPod{}, services: map[string][]nb.Row{}, tenants: map[string]*tenant{}, daemons: map[string]*daemon{}}
	for _, step := range []func() error{lab.startFabric, lab.startCentral, lab.startNodes, lab.startStore, lab.startPods, lab.startTenants} {
		if err := step(); err != nil {
			return errors.Join(err, lab.logs())
		}
	}
	return nil
}

// logs are the ends of all logs, for a lab that does not start.
func (l *theLab) logs() error {
	var errs []error
	files, _ := filepath.Glob(labDir + "/*/*.log")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		errs = append(errs, fmt.Errorf("--- %s\n%s", f, text[max(0, len(text)-1000):]))
	}
	return errors.Join(errs...)
}

func run(command string) error {
	out, err := exec.Command("bash", "-ec", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func namespace(name string) string { return filepath.Join(namespaces, name) }

func (l *theLab) startFabric() error {
	return run(`
ip link set lo up
ip link add br0 type bridge
sysctl -qw net.ipv6.conf.br0.accept_dad=0
ip addr add 172.30.0.1/24 dev br0
ip addr add fd00:172:30::1/64 dev br0 nodad
ip link set br0 up
ethtool -K br0 tx off >/dev/null`)
}

// daemon is a process of the lab that can be killed and started again.
type daemon struct {
	netns string // "" for the fabric
	args  []string
	env   []string
	cmd   *exec.Cmd
}

func (l *theLab) daemon(name, netns, dir string, args ...string) error {
	l.daemons[name] = &daemon{netns: netns, args: args, env: []string{
		"OVS_RUNDIR=" + dir, "OVS_DBDIR=" + dir, "OVS_LOGDIR=" + dir, "OVN_RUNDIR=" + dir, "OVN_LOGDIR=" + dir,
	}}
	return l.daemons[name].start(filepath.Join(dir, name+".log"))
}

func (d *daemon) start(log string) error {
	args := d.args
	if d.netns != "" {
		args = append([]string{"nsenter", "--net=" + namespace(d.netns)}, args...)
	}
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Env = append(os.Environ(), d.env...)
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	d.cmd.Stderr = out
	return d.cmd.Start()
}

func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = d.cmd.Wait() // it was killed
	return nil
}

func path(parts ...string) string { return filepath.Join(append([]string{labDir}, parts...)...) }

func (l *theLab) startCentral() error {
	dir := path("central")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for db, remote := range map[string]string{"nb": "", "sb": "ptcp:6642:172.30.0.1"} {
		if err := createDatabase(db); err != nil {
			return err
		}
		args := []string{"ovsdb-server", "--unixctl=" + path("central", db+".ctl"), "--remote=punix:" + path("central", db+".sock"), "-vconsole:info", "-vsyslog:off"}
		if remote != "" {
			args = append(args, "--remote="+remote)
		}
		if err := l.daemon(db, "", dir, append(args, path("central", db+".db"))...); err != nil {
			return err
		}
	}
	return l.daemon("northd", "", dir, "ovn-northd", "--unixctl="+path("central", "northd.ctl"), "-vconsole:info", "-vsyslog:off",
		"--ovnnb-db=unix:"+path("central", "nb.sock"), "--ovnsb-db=unix:"+path("central", "sb.sock"))
}

func createDatabase(db string) error {
	script := "ovsdb-tool create DB.db /usr/share/ovn/ovn-NAME.ovsschema\n"
	if db == "sb" {
		// ovn-controller 23.03 that is connected when northd makes this row crashes.
		script += `ovsdb-tool transact DB.db '["OVN_Southbound",{"op":"insert","table":"SB_Global","row":{}}]'`
	}
	return run(strings.NewReplacer("DB", path("central", db), "NAME", db).Replace(script))
}

func (l *theLab) startNodes() error {
	for i := range 2 {
		n := &labNode{
			Node: topology.Node{Name: fmt.Sprintf("node-%d", i+1), Subnets: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.128.%d.0/23", 2*i)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:128:%d::/64", i)),
			}},
			fabric4: netip.MustParseAddr(fmt.Sprintf("172.30.0.%d", 11+i)), fabric6: netip.MustParseAddr(fmt.Sprintf("fd00:172:30::%x", 11+i)),
		}
		l.nodes = append(l.nodes, n)
		if err := l.startNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

func (l *theLab) startNode(n *labNode) error {
	dir := path(n.Name)
	script := strings.NewReplacer("NODE", n.Name, "DIR", dir, "IP4", n.fabric4.String(), "IP6", n.fabric6.String())
	err := run(script.Replace(`
mkdir -p DIR
ip netns add NODE
ip -n NODE link set lo up
ip link add NODE type veth peer name eth0 netns NODE
ip link set NODE master br0 up
ethtool -K NODE tx off >/dev/null
nsenter --net=/run/netns/NODE ethtool -K eth0 tx off >/dev/null
nsenter --net=/run/netns/NODE sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=2
nsenter --net=/run/netns/NODE nft 'add table netdev fabric; add chain netdev fabric eth0 { type filter hook ingress device "eth0" priority 0; policy drop; }'
ip -n NODE link set eth0 up
ovsdb-tool create DIR/conf.db /usr/share/openvswitch/vswitch.ovsschema`))
	if err != nil {
		return err
	}
	if err := l.daemon(n.Name+"-ovsdb", n.Name, dir, "ovsdb-server", "--unixctl="+dir+"/ovsdb.ctl", "--remote=punix:"+dir+"/db.sock", "-vsyslog:off", dir+"/conf.db"); err != nil {
		return err
	}
	err = run(script.Replace(`
for i in $(seq 100); do [ -S DIR/db.sock ] && break; sleep 0.05; done
ovs-vsctl --db=unix:DIR/db.sock --no-wait init -- set open . external_ids:system-id=NODE external_ids:ovn-remote=tcp:172.30.0.1:6642 \
  external_ids:ovn-encap-type=geneve external_ids:ovn-encap-ip=IP4 external_ids:ovn-bridge-datapath-type=netdev`))
	if err != nil {
		return err
	}
	if err := l.daemon(n.Name+"-vswitchd", n.Name, dir, "ovs-vswitchd", "--unixctl="+dir+"/vswitchd.ctl", "-vconsole:warn", "-vsyslog:off", "unix:"+dir+"/db.sock"); err != nil {
		return err
	}
	err = run(script.Replace(`
ovs-vsctl --timeout=20 --db=unix:DIR/db.sock add-br br-int -- set bridge br-int datapath_type=netdev fail-mode=secure \
  -- add-br br-phys -- set bridge br-phys datapath_type=netdev -- add-port br-phys eth0
nsenter --net=/run/netns/NODE sysctl -qw net.ipv6.conf.br-phys.accept_dad=0
ip -n NODE addr add IP4/24 dev br-phys
ip -n NODE addr add IP6/64 dev br-phys nodad
ip -n NODE link set br-phys up
nsenter --net=/run/netns/NODE ethtool -K br-phys tx off >/dev/null`))
	if err != nil {
		return err
	}
	return l.daemon(n.Name+"-controller", n.Name, dir, "ovn-controller", "-vconsole:info", "-vsyslog:off", "unix:"+dir+"/db.sock")
}

// startStore hands the rows of the cluster and its nodes to a store, as the network controller does.
func (l *theLab) startStore() error {
	log := slog.New(slog.DiscardHandler)
	southbound := &ovn.Southbound{Endpoint: ovn.Endpoint{Address: "unix:" + path("central", "sb.sock")}}
	l.store = ovn.NewStore(ovn.Config{Dial: ovn.DialOVSDB(ovn.Endpoint{Address: "unix:" + path("central", "nb.sock")}, log), Gate: southbound, Log: log})
	l.store.Set("cluster", topology.ClusterRows(l.settings))
	l.store.Set("guard", topology.GuardRows())
	for _, n := range l.nodes {
		l.store.Set("node/"+n.Name, topology.NodeRows(n.Node))
	}
	for name, p := range l.pods {
		l.store.Set("pod/"+name, topology.PodRows(p.Pod))
	}
	for owner, rows := range l.services {
		l.store.Set(owner, rows)
	}
	for _, t := range l.tenants {
		t.apply()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.store.Run(ctx) }()
	l.stop = func() { cancel(); <-done }
	return l.settle()
}

// settle waits until the wanted rows are flows on every node, and no switch forwards by what it has kept of earlier ones.
func (l *theLab) settle() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := l.store.Wait(ctx); err != nil {
		return err
	}
	if err := run("ovn-nbctl --db=unix:" + path("central", "nb.sock") + " --wait=hv --timeout=30 sync"); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := run("ovs-appctl --timeout=30 --target=" + path(n.Name, "vswitchd.ctl") + " revalidator/wait"); err != nil {
			return err
		}
	}
	return nil
}

func (l *theLab) startPods() error {
	for _, n := range l.nodes {
		if err := l.startManagement(n); err != nil {
			return fmt.Errorf("management port of %s: %w", n.Name, err)
		}
	}
	for i, spec := range []struct{ name, node string }{{"a1", "node-1"}, {"b1", "node-1"}, {"a2", "node-2"}, {"b2", "node-2"}} {
		if err := l.startPod(spec.name, spec.node, i); err != nil {
			return fmt.Errorf("pod %s: %w", spec.name, err)
		}
	}
	return l.settle()
}

// startManagement is what the agent does to a node: the management port with its routes, and masquerading.
func (l *theLab) startManagement(n *labNode) error {
	script := strings.NewReplacer("NODE", n.Name, "DIR", path(n.Name), "PORT", topology.ManagementPort(n.Name),
		"MAC", podnetworks.MAC(podnetworks.Management(n.Subnets[0])).String(),
		"TENANTS4", tenantVIPs[0].String(), "TENANTS6", tenantVIPs[1].String(),
		"ENTRY4", topology.EntryAddress(n.Subnets[0]).String(), "ENTRY6", topology.EntryAddress(n.Subnets[1]).String())
	err := run(script.Replace(`
ovs-vsctl --timeout=20 --db=unix:DIR/db.sock add-port br-int pb-mp0 -- set interface pb-mp0 type=internal 'mac="MAC"' external_ids:iface-id=PORT
nsenter --net=/run/netns/NODE nft '
add table inet egress
add chain inet egress post { type nat hook postrouting priority 100; }
add rule inet egress post oifname "br-phys" ip saddr { 10.128.0.0/14, 100.64.0.0/15 } masquerade
add rule inet egress post oifname "br-phys" ip6 saddr { fd00:10:128::/48, fd98::/64, fd99::/64 } masquerade
add rule inet egress post oifname "pb-mp0" ip daddr TENANTS4 snat ip to ENTRY4
add rule inet egress post oifname "pb-mp0" ip6 daddr TENANTS6 snat ip6 to ENTRY6
add rule inet egress post oifname "pb-mp0" masquerade'`))
	if err != nil {
		return err
	}
	port := link.HostPort{Name: "pb-mp0", MAC: podnetworks.MAC(podnetworks.Management(n.Subnets[0])), MTU: l.settings.PodMTU}
	for i, subnet := range n.Subnets {
		gateway := podnetworks.Gateway(subnet)
		port.IPs = append(port.IPs, netip.PrefixFrom(podnetworks.Management(subnet), subnet.Bits()))
		for _, dest := range []netip.Prefix{l.settings.ClusterCIDRs[i], l.settings.ServiceCIDRs[i], topology.Transit()[i], topology.Entry()[i]} {
			port.Routes = append(port.Routes, link.Route{Dest: dest, Via: gateway})
		}
	}
	return netns.Do(namespace(n.Name), func() error {
		shield, err := link.NewShield()
		if err != nil {
			return err
		}
		return link.ConfigureHostPort(shield, port)
	})
}

func (l *theLab) startPod(name, node string, index int, edit ...func(*labPod)) error {
	subnets := l.nodes[node[len(node)-1]-'1'].Subnets
	p := &labPod{netns: name, Pod: topology.Pod{Namespace: "default", Name: name, UID: "uid-1", Node: node}}
	p.Network = podnetworks.Network{MTU: l.settings.PodMTU}
	for i, host := range []string{fmt.Sprintf("10.128.%d.%d", subnets[0].Addr().As4()[2], 10+index), strings.TrimSuffix(subnets[1].Addr().String(), ":") + fmt.Sprintf(":%x", 16+index)} {
		p.Network.IPs = append(p.Network.IPs, netip.PrefixFrom(netip.MustParseAddr(host), subnets[i].Bits()))
		p.Network.Gateways = append(p.Network.Gateways, podnetworks.Gateway(subnets[i]))
	}
	p.Network.MAC = podnetworks.MAC(p.Network.IPs[0].Addr())
	for _, change := range edit {
		change(p)
	}
	l.pods[name] = p
	l.store.Set("pod/"+name, topology.PodRows(p.Pod))
	return l.plug(name, node, topology.PodPort("default", name), "uid-1", p.Network)
}

// plug makes a namespace with one interface and gives it a logical port.
func (l *theLab) plug(name, node, port, version string, network podnetworks.Network) error {
	if err := run("ip netns add " + name); err != nil {
		return err
	}
	return l.connect(name, node, port, version, network)
}

// connect is plug for a namespace that exists.
func (l *theLab) connect(name, node, port, version string, network podnetworks.Network) error {
	if err := l.attach(name, node, port, version, network); err != nil {
		return err
	}
	return run(fmt.Sprintf("ovs-vsctl --timeout=20 --db=unix:%s wait-until interface v-%s external_ids:ovn-installed=true", path(node, "db.sock"), name))
}

// attach is connect for a port that OVN tells nothing about.
func (l *theLab) attach(name, node, port, version string, network podnetworks.Network) error {
	veth := link.Veth{Host: "v-" + name, Netns: namespace(name), Name: "eth0", MAC: network.MAC, MTU: network.MTU, IPs: network.IPs}
	for _, gateway := range network.Gateways {
		unspecified := netip.IPv4Unspecified()
		if gateway.Is6() {
			unspecified = netip.IPv6Unspecified()
		}
		veth.Routes = append(veth.Routes, link.Route{Dest: netip.PrefixFrom(unspecified, 0), Via: gateway})
	}
	err := netns.Do(namespace(node), func() error {
		shield, err := link.NewShield()
		if err != nil {
			return err
		}
		return link.Connect(context.Background(), shield, veth)
	})
	if err != nil {
		return err
	}
	ids := "external_ids:iface-id=" + port
	if version != "" {
		ids += " external_ids:iface-id-ver=" + version
	}
	db := "unix:" + path(node, "db.sock")
	return run(fmt.Sprintf("ovs-vsctl --timeout=20 --db=%s add-port br-int %s -- set interface %s %s", db, veth.Host, veth.Host, ids))
}

// dialFrom connects from inside a namespace.
func dialFrom(where, network string, to netip.AddrPort, timeout time.Duration) (conn net.Conn, err error) {
	err = inside(where, func() error {
		conn, err = net.DialTimeout(network, to.String(), timeout)
		return err
	})
	return conn, err
}

// inside runs f in a namespace; "" is the fabric.
func inside(where string, f func() error) error {
	if where == "" {
		return f()
	}
	return netns.Do(namespace(where), f)
}
