package netconfig

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// show writes a configuration as one line for each thing that it asks for.
func show(c Config) string {
	var out strings.Builder
	for _, n := range c.NICs {
		fmt.Fprintf(&out, "nic %q mac=%s", n.Name, n.MAC)
		for _, f := range []struct {
			on   bool
			text string
		}{
			{n.SetName != "", "set-name=" + n.SetName}, {n.MTU > 0, fmt.Sprint("mtu=", n.MTU)}, {n.DHCP4, "dhcp4"},
			{n.DHCP6 != Auto, "dhcp6=" + string(n.DHCP6)}, {n.AcceptRA != Auto, "ra=" + string(n.AcceptRA)},
			{n.Metric > 0, fmt.Sprint("metric=", n.Metric)}, {n.NoRoutes, "no-routes"}, {n.NoDNS, "no-dns"},
		} {
			if f.on {
				out.WriteString(" " + f.text)
			}
		}
		if n.VLAN != nil {
			fmt.Fprintf(&out, " vlan=%d@%s", n.VLAN.ID, n.VLAN.Link)
		}
		out.WriteString("\n")
		for _, a := range n.Addresses {
			fmt.Fprintf(&out, "  address %s\n", a)
		}
		for _, r := range n.Routes {
			fmt.Fprintf(&out, "  route %s via %s metric %d onlink %v\n", r.To, r.Via, r.Metric, r.OnLink)
		}
		if len(n.DNS)+len(n.Search) > 0 {
			fmt.Fprintf(&out, "  dns %v %v\n", n.DNS, n.Search)
		}
	}
	if len(c.DNS)+len(c.Search) > 0 {
		fmt.Fprintf(&out, "dns %v %v\n", c.DNS, c.Search)
	}
	return out.String()
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"v2 of the reference's dual-stack example", `
version: 2
ethernets:
  eth0:
    dhcp4: true
    addresses: [ fd10:0:2::2/120 ]
    gateway6: fd10:0:2::1
`, `
nic "eth0" mac= dhcp4
  address fd10:0:2::2/120
  route ::/0 via fd10:0:2::1 metric 0 onlink false
`},
		{"v2 with everything, under netplan's key", `
network:
  version: 2
  ethernets:
    a:
      match: {macaddress: "02:00:00:00:00:01"}
      set-name: lan
      mtu: 9000
      dhcp4: yes
      dhcp6: false
      accept-ra: false
      dhcp4-overrides: {route-metric: 50, use-routes: false, use-dns: false}
      addresses: [10.0.0.2/24, {"10.0.0.3/24": {label: x}}]
      routes: [{to: default, via: 10.0.0.1, metric: 7}, {to: 10.9.0.1, via: 10.1.0.1, on-link: true}]
      nameservers: {addresses: [10.0.0.53, "fd00::53"], search: [a.test]}
    b: {match: {name: "ens*"}, dhcp4: true}
  vlans:
    v5: {id: 5, link: lan, addresses: [10.5.0.2/24]}
`, `
nic "" mac=02:00:00:00:00:01 set-name=lan mtu=9000 dhcp4 dhcp6=no ra=no metric=50 no-routes no-dns
  address 10.0.0.2/24
  address 10.0.0.3/24
  route 0.0.0.0/0 via 10.0.0.1 metric 7 onlink false
  route 10.9.0.1/32 via 10.1.0.1 metric 0 onlink true
  dns [10.0.0.53 fd00::53] [a.test]
nic "ens*" mac= dhcp4
nic "v5" mac= vlan=5@lan
  address 10.5.0.2/24
`},
		{"v1", `
version: 1
config:
- type: physical
  name: eth0
  mac_address: 02:00:00:00:00:01
  mtu: 1400
  subnets:
  - {type: dhcp}
  - {type: static, address: 10.0.0.2, netmask: 255.255.255.0, gateway: 10.0.0.1, dns_nameservers: [10.0.0.53], dns_search: [a.test]}
  - {type: static6, address: "fd00::2/64", routes: [{network: "fd01::", netmask: "ffff:ffff::", gateway: "fd00::1", metric: 3}]}
- {type: vlan, name: eth0.5, vlan_link: eth0, vlan_id: 5, mac_address: "02:00:00:00:00:09", subnets: [{type: dhcp6}]}
- {type: nameserver, address: 10.0.0.54, search: b.test}
- {type: route, destination: 10.8.0.0/16, gateway: 10.0.0.8}
- {type: loopback, name: lo}
`, `
nic "" mac=02:00:00:00:00:01 set-name=eth0 mtu=1400 dhcp4
  address 10.0.0.2/24
  address fd00::2/64
  route 0.0.0.0/0 via 10.0.0.1 metric 0 onlink false
  route fd01::/32 via fd00::1 metric 3 onlink false
  dns [10.0.0.53] [a.test]
nic "eth0.5" mac= dhcp6=yes vlan=5@eth0
  route 10.8.0.0/16 via 10.0.0.8 metric 0 onlink false
dns [10.0.0.54] [b.test]
`},
		{"OpenStack", `
{"links": [{"id": "l0", "ethernet_mac_address": "02:00:00:00:00:01", "mtu": 1450}, {"id": "l1", "name": "eth1"}],
 "networks": [
  {"link": "l0", "type": "ipv4", "ip_address": "10.0.0.2", "netmask": "255.255.255.0", "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}],
   "services": [{"type": "dns", "address": "10.0.0.53"}]},
  {"link": "l0", "type": "ipv6", "ip_address": "fd00::2/64", "gateway": "fd00::1"},
  {"link": "l1", "type": "ipv4_dhcp"}, {"link": "l1", "type": "ipv6_slaac"}],
 "services": [{"type": "dns", "address": "10.0.0.54"}]}
`, `
nic "" mac=02:00:00:00:00:01 mtu=1450
  address 10.0.0.2/24
  address fd00::2/64
  route 0.0.0.0/0 via 10.0.0.1 metric 0 onlink false
  route ::/0 via fd00::1 metric 0 onlink false
  dns [10.0.0.53] []
nic "eth1" mac= dhcp4 ra=yes
dns [10.0.0.54] []
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), show(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"version: 3", "neither a version"},
		{"a: [", "not YAML"},
		{"{version: 2, ethernets: {eth0: {addresses: [10.0.0.300/24]}}}", `ethernets.eth0: "10.0.0.300/24" is not an address`},
		{"{version: 2, ethernets: {eth0: {routes: [{to: default}]}}}", `no "via"`},
		{"{version: 2, bonds: {b0: {}}}", "no bonds"},
		{"{version: 1, config: [{type: bond, name: b0}]}", `item 1: type "bond" is unknown`},
		{"{version: 1, config: [{type: physical, name: eth0, subnets: [{type: static, address: 10.0.0.1, netmask: x}]}]}", `"x" is not a netmask`},
	} {
		if _, err := Parse([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one that says %q", c.in, err, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	config, err := Parse([]byte(`{version: 2, ethernets: {
  a: {match: {macaddress: "02:00:00:00:00:01"}, mtu: 1001},
  b: {match: {name: "ens*"}, set-name: wan, mtu: 1002},
  eth1: {mtu: 1003}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, mac string
		mtu       int
	}{
		{"eth0", "02:00:00:00:00:01", 1001},
		{"ens5", "02:00:00:00:00:02", 1002},
		{"wan", "02:00:00:00:00:02", 1002}, // renamed already
		{"eth1", "02:00:00:00:00:03", 1003},
		{"eth2", "02:00:00:00:00:04", 0},
	} {
		mac, err := net.ParseMAC(c.mac)
		if err != nil {
			t.Fatal(err)
		}
		got := config.Find(c.name, mac)
		if got.MTU != c.mtu || got.DHCP4 != (c.mtu == 0) {
			t.Errorf("%s has MTU %d and DHCP %v, want MTU %d", c.name, got.MTU, got.DHCP4, c.mtu)
		}
	}
}
