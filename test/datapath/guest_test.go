package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/link/advert"
	"patchbay/internal/agent/netns"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// guest is a machine's interface that has no address of its own accord.
type guest struct {
	topology.NIC
	name string // of its namespace
	lla  netip.Addr
}

// newGuest plugs a guest into a network whose rows are there. It is the index-th of its subnets.
func newGuest(t *testing.T, name, node string, n topology.Network, index int) *guest {
	t.Helper()
	g := &guest{name: name, lla: netip.MustParseAddr(fmt.Sprintf("fe80::%x", 0x100+index)), NIC: topology.NIC{
		Namespace: "vms", VMI: name, Name: "default", Network: n, Hostname: "host-" + name, Chassis: []string{node},
		MAC: net.HardwareAddr{2, 0, 0, byte(n.ID), 0, byte(index)},
	}}
	for _, subnet := range n.Subnets {
		ip := subnet.Addr()
		for range index {
			ip = ip.Next()
		}
		g.IPs = append(g.IPs, netip.PrefixFrom(ip, subnet.Bits()))
	}
	lab.store.Set("nic/"+name, topology.NICRows(g.NIC))
	t.Cleanup(func() {
		lab.store.Delete("nic/" + name)
		_ = run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port v-%s; ip netns del %s", path(node, "db.sock"), name, name))
	})
	must(t, lab.plug(name, node, topology.NICPort("vms", name, "default"), "", podnetworks.Network{MAC: g.MAC, MTU: n.MTU}))
	if len(n.Subnets) > 0 {
		must(t, netns.Do(namespace(node), func() error { return advert.Drop("v-" + name) })) // as the agent does
	}
	// Not the link-local address that follows from the MAC: guests choose others.
	must(t, run(fmt.Sprintf(`nsenter --net=%s sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=1 net.ipv6.conf.eth0.disable_ipv6=0
ip -n %s addr add %s/64 dev eth0 nodad`, namespace(name), name, g.lla)))
	must(t, lab.settle())
	return g
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func setNetwork(t *testing.T, n topology.Network) {
	t.Helper()
	lab.store.Set("guard", topology.GuardRows())
	lab.store.Set("network/"+n.Name, topology.NetworkRows(n))
	t.Cleanup(func() { lab.store.Delete("network/" + n.Name) })
	must(t, lab.settle())
}

// routed is a tenant's network of both families.
func routed(name string, id int) topology.Network {
	return topology.Network{
		Name: name, ID: id, Topology: netconf.Layer2, Role: podnetworks.Primary, MTU: 1380,
		Subnets: tenantSubnets, Gateways: tenantGateways, Namespaces: []string{"vms"},
		DNS: lab.settings.ClusterDNS, Domain: "cluster.local",
	}
}

func TestGuestsLearnTheirAddresses(t *testing.T) {
	n := routed("guests", 101)
	setNetwork(t, n)
	g := newGuest(t, "dhcp", "node-2", n, 37)
	must(t, inside(g.name, func() error {
		checkDHCP4(t, g, map[dhcpv4.OptionCode]string{
			dhcpv4.OptionSubnetMask: "255.255.0.0", dhcpv4.OptionRouter: "10.20.0.1", dhcpv4.OptionDomainNameServer: "10.96.0.10",
			dhcpv4.OptionInterfaceMTU: "1380", dhcpv4.OptionHostName: "host-dhcp", dhcpv4.OptionIPAddressLeaseTime: "58m20s",
			dhcpv4.OptionServerIdentifier: "169.254.1.1", dhcpv4.OptionDomainName: "vms.svc.cluster.local",
			dhcpv4.OptionDNSDomainSearchList: "vms.svc.cluster.local svc.cluster.local cluster.local",
		})
		checkDHCP6(t, g, "fd00:10:96::a", "vms.svc.cluster.local")
		checkAdvertisement(t, g)
		return nil
	}))
}

func TestGuestsOfASecondaryNetworkLearnTheirAddresses(t *testing.T) {
	n := topology.Network{Name: "island", ID: 102, Topology: netconf.Layer2, Role: podnetworks.Secondary, MTU: 1300, Subnets: tenantSubnets}
	setNetwork(t, n)
	g := newGuest(t, "island", "node-1", n, 38)
	must(t, inside(g.name, func() error {
		checkDHCP4(t, g, map[dhcpv4.OptionCode]string{
			dhcpv4.OptionSubnetMask: "255.255.0.0", dhcpv4.OptionRouter: "", dhcpv4.OptionDomainNameServer: "",
			dhcpv4.OptionInterfaceMTU: "1300", dhcpv4.OptionHostName: "host-island",
		})
		checkDHCP6(t, g, "", "")
		return nil
	}))
}

// checkDHCP4 asks as a guest does that has just started.
func checkDHCP4(t *testing.T, g *guest, want map[dhcpv4.OptionCode]string) {
	t.Helper()
	client, err := nclient4.New("eth0", nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(5))
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	lease, err := client.Request(context.Background(), dhcpv4.WithRequestedOptions(
		dhcpv4.OptionHostName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionDomainName, dhcpv4.OptionDomainNameServer, dhcpv4.OptionRouter, dhcpv4.OptionSubnetMask))
	if err != nil {
		t.Errorf("DHCPv4: %v", err)
		return
	}
	if got := lease.ACK.YourIPAddr.String(); got != g.IPs[0].Addr().String() {
		t.Errorf("DHCPv4 gives %s, want %s", got, g.IPs[0])
	}
	a := lease.ACK
	search := ""
	if list := a.DomainSearch(); list != nil {
		search = strings.Join(list.Labels, " ")
	}
	mtu := uint16(0)
	if b := a.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		mtu = binary.BigEndian.Uint16(b)
	}
	got := map[dhcpv4.OptionCode]string{
		dhcpv4.OptionSubnetMask: net.IP(a.SubnetMask()).String(), dhcpv4.OptionRouter: join(a.Router()), dhcpv4.OptionDomainNameServer: join(a.DNS()),
		dhcpv4.OptionInterfaceMTU: fmt.Sprint(mtu), dhcpv4.OptionHostName: a.HostName(), dhcpv4.OptionIPAddressLeaseTime: a.IPAddressLeaseTime(0).String(),
		dhcpv4.OptionServerIdentifier: a.ServerIdentifier().String(), dhcpv4.OptionDomainName: a.DomainName(), dhcpv4.OptionDNSDomainSearchList: search,
	}
	for option, text := range want {
		if got[option] != text {
			t.Errorf("DHCPv4 option %s is %q, want %q", option, got[option], text)
		}
	}
}

func join(ips []net.IP) string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return strings.Join(out, " ")
}

func checkDHCP6(t *testing.T, g *guest, dns, search string) {
	t.Helper()
	conn, err := nclient6.NewIPv6UDPConn("eth0", dhcpv6.DefaultClientPort)
	if err != nil {
		t.Error(err)
		return
	}
	client, err := nclient6.NewWithConn(conn, g.MAC, nclient6.WithTimeout(2*time.Second), nclient6.WithRetry(5))
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	advertise, err := client.Solicit(context.Background())
	if err != nil {
		t.Errorf("DHCPv6 solicit: %v", err)
		return
	}
	reply, err := client.Request(context.Background(), advertise)
	if err != nil {
		t.Errorf("DHCPv6 request: %v", err)
		return
	}
	ia := reply.Options.OneIANA()
	if ia == nil || ia.Options.OneAddress() == nil || ia.Options.OneAddress().IPv6Addr.String() != g.IPs[1].Addr().String() {
		t.Errorf("DHCPv6 gives %v, want %s", ia, g.IPs[1])
	}
	if got := join(reply.Options.DNS()); got != dns {
		t.Errorf("DHCPv6 names DNS %q, want %q", got, dns)
	}
	got := ""
	if list := reply.Options.DomainSearchList(); list != nil {
		got = strings.Join(list.Labels, " ")
	}
	if got != search {
		t.Errorf("DHCPv6 lets search %q, want %q", got, search)
	}
	if id, ok := reply.Options.ServerID().(*dhcpv6.DUIDLL); !ok || id.HWType != iana.HWTypeEthernet {
		t.Errorf("DHCPv6's server is %v", reply.Options.ServerID())
	}
}

// checkAdvertisement solicits the router.
func checkAdvertisement(t *testing.T, g *guest) {
	t.Helper()
	device, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Error(err)
		return
	}
	conn, _, err := ndp.Listen(device, ndp.Addr(g.lla.String()))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	all := netip.MustParseAddr("ff02::2")
	for range 5 {
		if err := conn.WriteTo(&ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: g.MAC}}}, nil, all); err != nil {
			t.Error(err)
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			m, _, from, err := conn.ReadFrom()
			if err != nil {
				break
			}
			if ra, ok := m.(*ndp.RouterAdvertisement); ok {
				checkRouter(t, ra, from)
				return
			}
		}
	}
	t.Error("nobody advertises a router")
}

func checkRouter(t *testing.T, ra *ndp.RouterAdvertisement, from netip.Addr) {
	t.Helper()
	if got := from.WithZone("").String(); got != "fe80::858:aff:fe14:1" {
		t.Errorf("the router is %s", got)
	}
	if !ra.ManagedConfiguration || ra.RouterLifetime == 0 || ra.RouterSelectionPreference != ndp.Low {
		t.Errorf("the advertisement is %+v", ra)
	}
	var dns, search string
	for _, o := range ra.Options {
		switch o := o.(type) {
		case *ndp.RecursiveDNSServer:
			dns = fmt.Sprint(o.Servers)
		case *ndp.DNSSearchList:
			search = strings.Join(o.DomainNames, " ")
		case *ndp.MTU:
			if o.MTU != 1380 {
				t.Errorf("the router says MTU %d", o.MTU)
			}
		case *ndp.PrefixInformation:
			if o.AutonomousAddressConfiguration {
				t.Errorf("the router lets guests choose addresses in %s", o.Prefix)
			}
		}
	}
	if dns != "[fd00:10:96::a]" || search != "vms.svc.cluster.local svc.cluster.local cluster.local" {
		t.Errorf("the router names DNS %s and lets search %q", dns, search)
	}
}

// wire sends and sees frames as they are.
type wire struct {
	t    *testing.T
	conn *packet.Conn
}

func newWire(t *testing.T, where string) *wire {
	t.Helper()
	w := &wire{t: t}
	must(t, inside(where, func() error {
		device, err := net.InterfaceByName("eth0")
		if err == nil {
			w.conn, err = packet.Listen(device, packet.Raw, unix.ETH_P_ALL, nil)
		}
		return err
	}))
	t.Cleanup(func() { _ = w.conn.Close() })
	return w
}

func (w *wire) send(frame []byte) {
	w.t.Helper()
	if _, err := w.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil {
		w.t.Fatal(err)
	}
}

// sees tells whether a frame arrives. It is sent together with a marker that may pass, again and again until it arrives or enough
// markers have come without it: one pair proves nothing, for a switch may lose or overtake the first packet of a flow.
func (w *wire) sees(from *wire, frame, marker []byte) bool {
	w.t.Helper()
	const enough = 3
	deadline := time.Now().Add(30 * time.Second)
	buffer := make([]byte, 4096)
	for seen, markers := false, 0; time.Now().Before(deadline); {
		from.send(frame)
		from.send(marker)
		_ = w.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		for before := markers; markers == before; {
			n, _, err := w.conn.ReadFrom(buffer)
			if err != nil {
				break
			}
			if bytes.HasPrefix(buffer[:n], frame) {
				seen = true
			}
			if bytes.HasPrefix(buffer[:n], marker) {
				markers++
			}
		}
		if seen || markers == enough {
			return seen
		}
	}
	w.t.Fatal("not even what may pass arrives")
	return false
}

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append(append(bytes.Clone(to), from...), byte(kind>>8), byte(kind))
	frame = append(frame, payload...)
	return append(frame, make([]byte, max(0, 60-len(frame)))...)
}

// datagram is UDP over either family, to everybody.
func datagram(mac net.HardwareAddr, from, to netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	return internet(mac, from.Addr(), to.Addr(), 17, 6, udp)
}

// internet is an IP packet in a frame to everybody. at is where the checksum stands in the payload.
func internet(mac net.HardwareAddr, from, to netip.Addr, protocol byte, at int, payload []byte) []byte {
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, protocol, byte(len(payload)>>8), byte(len(payload)))
	binary.BigEndian.PutUint16(payload[at:], checksum(append(pseudo, payload...)))
	if from.Is6() {
		header := append([]byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, 255}, append(from.AsSlice(), to.AsSlice()...)...)
		group := net.HardwareAddr{0x33, 0x33, to.AsSlice()[12], to.AsSlice()[13], to.AsSlice()[14], to.AsSlice()[15]}
		return ethernet(group, mac, 0x86dd, append(header, payload...))
	}
	length := 20 + len(payload)
	header := append([]byte{0x45, 0, byte(length >> 8), byte(length), 0, 0, 0, 0, 64, protocol, 0, 0}, append(from.AsSlice(), to.AsSlice()...)...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return ethernet(broadcastMAC, mac, 0x0800, append(header, payload...))
}

func checksum(data []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(data); i += 2 {
		word := uint32(data[i]) << 8
		if i+1 < len(data) {
			word |= uint32(data[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func gratuitousARP(mac, claimed net.HardwareAddr, ip netip.Addr) []byte {
	body := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	body = append(append(append(append(body, claimed...), ip.AsSlice()...), broadcastMAC...), ip.AsSlice()...)
	return ethernet(broadcastMAC, mac, 0x0806, body)
}

func icmp6(t *testing.T, mac net.HardwareAddr, from netip.Addr, to string, m ndp.Message) []byte {
	t.Helper()
	body, err := ndp.MarshalMessage(m)
	must(t, err)
	return internet(mac, from, netip.MustParseAddr(to), 58, 2, body)
}

// pretences are frames by which a guest claims to be somebody else. All go to everybody.
func pretences(t *testing.T, g *guest) map[string][]byte {
	own4, own6, all4 := netip.MustParseAddr("10.20.0.41"), netip.MustParseAddr("fd00:20::29"), netip.MustParseAddr("255.255.255.255")
	other4, other6 := netip.MustParseAddr("10.20.0.99"), netip.MustParseAddr("fd00:20::99")
	gateway4, gateway6 := tenantGateways[0], tenantGateways[1]
	nodes := netip.MustParseAddr("ff02::1")
	port := netip.AddrPortFrom
	stolen := net.HardwareAddr{2, 0, 0, 0xaa, 0, 1}
	return map[string][]byte{
		"another MAC":          datagram(stolen, port(own4, 4000), port(all4, 4001), "mac"),
		"another IPv4 address": datagram(g.MAC, port(other4, 4000), port(all4, 4001), "ip4"),
		"another IPv6 address": datagram(g.MAC, port(other6, 4000), port(nodes, 4001), "ip6"),
		"ARP for the gateway":  gratuitousARP(g.MAC, g.MAC, gateway4),
		"ARP with another MAC": gratuitousARP(g.MAC, stolen, own4),
		"ND for the gateway":   icmp6(t, g.MAC, g.lla, "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: gateway6, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: g.MAC}}}),
		"ND with another MAC":  icmp6(t, g.MAC, g.lla, "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: own6, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: stolen}}}),
		"DHCPv4 server":        datagram(g.MAC, port(own4, 67), port(all4, 68), "offer"),
		"DHCPv6 server":        datagram(g.MAC, port(g.lla, 547), port(nodes, 546), "advertise"),
		"a router":             icmp6(t, g.MAC, g.lla, "ff02::1", &ndp.RouterAdvertisement{RouterLifetime: time.Hour}),
	}
}

func TestGuestsDoNotPretend(t *testing.T) {
	n := routed("honest", 103)
	setNetwork(t, n)
	for _, node := range []string{"node-1", "node-2"} {
		liar, witness := newGuest(t, "liar", "node-1", n, 41), newGuest(t, "witness", node, n, 42)
		from, to := newWire(t, liar.name), newWire(t, witness.name)
		marker := datagram(liar.MAC, netip.MustParseAddrPort("10.20.0.41:5000"), netip.MustParseAddrPort("255.255.255.255:5001"), "marker")
		for name, frame := range pretences(t, liar) {
			if to.sees(from, frame, marker) {
				t.Errorf("to a guest on %s: %s passes", node, name)
			}
		}
		honest := map[string][]byte{
			"IPv6":               datagram(liar.MAC, netip.MustParseAddrPort("[fd00:20::29]:4000"), netip.MustParseAddrPort("[ff02::1]:4001"), "honest"),
			"ARP":                gratuitousARP(liar.MAC, liar.MAC, netip.MustParseAddr("10.20.0.41")),
			"ND of a link-local": icmp6(t, liar.MAC, liar.lla, "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: liar.lla, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: liar.MAC}}}),
			"ND of a given one":  icmp6(t, liar.MAC, liar.lla, "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: netip.MustParseAddr("fd00:20::29"), Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: liar.MAC}}}),
		}
		for name, frame := range honest {
			if !to.sees(from, frame, marker) {
				t.Errorf("to a guest on %s: %s does not pass", node, name)
			}
		}
		for _, g := range []*guest{liar, witness} {
			lab.store.Delete("nic/" + g.name)
			must(t, run(fmt.Sprintf("ovs-vsctl --db=unix:%s del-port v-%s; ip netns del %s", path(g.Chassis[0], "db.sock"), g.name, g.name)))
		}
	}
}

// TestGuestsOfABareNetworkAreFree: where the network gives no addresses a guest may have any, and be the one that gives them.
func TestGuestsOfABareNetworkAreFree(t *testing.T) {
	n := topology.Network{Name: "bare", ID: 104, Topology: netconf.Layer2, Role: podnetworks.Secondary, MTU: 1400}
	setNetwork(t, n)
	free, witness := newGuest(t, "free", "node-1", n, 41), newGuest(t, "bystander", "node-2", n, 42)
	from, to := newWire(t, free.name), newWire(t, witness.name)
	marker := datagram(free.MAC, netip.MustParseAddrPort("192.168.0.1:5000"), netip.MustParseAddrPort("255.255.255.255:5001"), "marker")
	frames := pretences(t, free)
	frames["RARP"] = ethernet(broadcastMAC, free.MAC, 0x8035, make([]byte, 28))
	frames["no IP at all"] = ethernet(broadcastMAC, free.MAC, 0x88b5, []byte("experiment"))
	for name, frame := range frames {
		want := name != "another MAC" && name != "ARP with another MAC" && name != "ND with another MAC"
		if got := to.sees(from, frame, marker); got != want {
			t.Errorf("%s passes: %v, want %v", name, got, want)
		}
	}
}

// TestLocalnetWithATag: guests of one VLAN of a physical network meet across nodes, and not those of another.
func TestLocalnetWithATag(t *testing.T) {
	for _, node := range lab.nodes {
		must(t, run(fmt.Sprintf("ovs-vsctl --db=unix:%s set open . external_ids:ovn-bridge-mappings=physnet:br-phys", path(node.Name, "db.sock"))))
	}
	guests := map[string]*guest{}
	for i, tag := range []int{200, 201} {
		n := topology.Network{Name: fmt.Sprint("vlan", tag), ID: 105 + i, Topology: netconf.Localnet, Role: podnetworks.Secondary, MTU: 1400, Physical: "physnet", VLAN: tag}
		setNetwork(t, n)
		for j, node := range lab.nodes {
			g := newGuest(t, fmt.Sprintf("v%d-%d", tag, j+1), node.Name, n, 50+j)
			guests[g.name] = g
			must(t, run(fmt.Sprintf("ip -n %s addr add 192.168.77.%d/24 dev eth0", g.name, 10+10*i+j)))
		}
	}
	for _, c := range []struct {
		from, to string
		want     bool
	}{{"v200-1", "192.168.77.11", true}, {"v201-1", "192.168.77.21", true}, {"v200-1", "192.168.77.21", false}, {"v200-1", "192.168.77.20", false}} {
		if n := ping(t, c.from, c.to); n > 0 != c.want {
			t.Errorf("%s to %s: %d of 4 answered, want any: %v", c.from, c.to, n, c.want)
		}
	}
	out, err := exec.Command("ovs-appctl", "--target="+path("node-2", "vswitchd.ctl"), "fdb/show", "br-phys").CombinedOutput()
	if mac := guests["v200-1"].MAC.String(); err != nil || !learned(string(out), mac, "200") {
		t.Errorf("the physical network of node-2 did not learn %s in VLAN 200 (%v):\n%s", mac, err, out)
	}
}

func learned(table, mac, vlan string) bool {
	for line := range strings.Lines(table) {
		words := strings.Fields(line)
		if len(words) >= 3 && words[1] == vlan && words[2] == mac {
			return true
		}
	}
	return false
}
