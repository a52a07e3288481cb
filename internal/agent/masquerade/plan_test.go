package masquerade

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/golden"
)

func uplink(ips ...string) podnet.Interface {
	i := podnet.Interface{Name: "eth0", MTU: 1400, MAC: net.HardwareAddr{0x0a, 0x58, 10, 128, 0, 5}}
	for _, ip := range ips {
		i.IPs = append(i.IPs, netip.MustParsePrefix(ip))
	}
	return i
}

const (
	podV4 = "10.128.0.5/23"
	podV6 = "fd00:10:128::5/64"
)

func tcp(port int32) virtv1.Port { return virtv1.Port{Port: port} }
func udp(port int32) virtv1.Port { return virtv1.Port{Port: port, Protocol: "UDP"} }

func TestPlan(t *testing.T) {
	dual := uplink(podV4, podV6)
	cases := map[string]Request{
		"everything":    {Uplink: dual},
		"ports":         {Uplink: dual, Interface: virtv1.Interface{Ports: []virtv1.Port{tcp(80), udp(53)}}},
		"port-range":    {Uplink: uplink(podV4), Interface: virtv1.Interface{Ports: []virtv1.Port{tcp(22)}, PortRanges: []virtv1.PortRange{{Protocol: "TCP", Start: 8000, End: 8100}}}},
		"ipv4-only":     {Uplink: uplink("169.254.3.4/16", "fe80::1/64", podV4)}, // link-local addresses do not count
		"ipv6-only":     {Uplink: uplink(podV6)},
		"own-networks":  {Uplink: dual, Network: &virtv1.PodNetwork{VMNetworkCIDR: "192.168.7.77/30", VMIPv6NetworkCIDR: "fd77::5/126"}, Queues: 4},
		"mesh":          {Uplink: dual, Mesh: true},
		"mesh-ports":    {Uplink: dual, Mesh: true, Interface: virtv1.Interface{Ports: []virtv1.Port{tcp(22), tcp(80), udp(53)}}},
		"other-uplinks": {Uplink: podnet.Interface{Name: "ovn-udn1-long15", MTU: 8900, IPs: dual.IPs}},
	}
	for name, request := range cases {
		t.Run(name, func(t *testing.T) {
			plan, err := NewPlan(request)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "txt", render(plan))
		})
	}
}

// render is all of a plan as text.
func render(p Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "tap %s (gateway of %s), MTU %d, %d queues\n", p.Device, p.Uplink, p.MTU, p.Queues)
	for _, pair := range p.Pairs() {
		fmt.Fprintf(&b, "gateway %s, guest %s, seen as %s\n", pair.Gateway, pair.Guest, pair.Pod)
	}
	fmt.Fprintf(&b, "addresses %s\n", p.Addresses())
	for _, s := range p.Sysctls() {
		fmt.Fprintln(&b, s)
	}
	tx := knftables.NewFake(Family, Table).NewTransaction()
	p.Rules(tx)
	b.WriteString(tx.String())
	return b.String()
}

func TestPlanRefuses(t *testing.T) {
	cases := []struct {
		name    string
		request Request
		want    string
	}{
		{"no address", Request{Uplink: uplink("fe80::1/64"), Interface: virtv1.Interface{Name: "default"}}, `pod interface eth0 has no global address to masquerade interface "default" behind`},
		{"small IPv4", Request{Uplink: uplink(podV4), Network: &virtv1.PodNetwork{VMNetworkCIDR: "10.0.2.0/31"}}, "VM CIDR subnet is too small, at least 2 host addresses are required: 10.0.2.0/31"},
		{"small IPv6", Request{Uplink: uplink(podV6), Network: &virtv1.PodNetwork{VMIPv6NetworkCIDR: "fd10:0:2::/127"}}, "VM CIDR subnet is too small, at least 2 host addresses are required: fd10:0:2::/127"},
		{"no CIDR", Request{Uplink: uplink(podV4), Network: &virtv1.PodNetwork{VMNetworkCIDR: "10.0.2.0"}}, `VM CIDR "10.0.2.0" is not an address range; write it as 10.0.2.0/24`},
		{"wrong family", Request{Uplink: uplink(podV4), Network: &virtv1.PodNetwork{VMNetworkCIDR: "fd00::/64"}}, `VM CIDR "fd00::/64" is of the wrong IP family`},
		{"port", Request{Uplink: uplink(podV4), Interface: virtv1.Interface{Name: "default", Ports: []virtv1.Port{tcp(65536)}}}, `interface "default": ports 65536-65536 are not a range within 1-65535`},
		{"protocol", Request{Uplink: uplink(podV4), Interface: virtv1.Interface{Name: "default", Ports: []virtv1.Port{{Port: 1, Protocol: "tcp dport 1 accept;"}}}}, `protocol "tcp dport 1 accept;" of port 1 is unknown`},
		{"range", Request{Uplink: uplink(podV4), Interface: virtv1.Interface{Name: "default", PortRanges: []virtv1.PortRange{{Protocol: "UDP", Start: 9, End: 8}}}}, `ports 9-8 are not a range`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewPlan(c.request)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// A network of the unused family may be nonsense: it is not looked at.
func TestPlanIgnoresUnusedFamily(t *testing.T) {
	_, err := NewPlan(Request{Uplink: uplink(podV4), Network: &virtv1.PodNetwork{VMIPv6NetworkCIDR: "nonsense"}})
	if err != nil {
		t.Error(err)
	}
}

func TestPodIPs(t *testing.T) {
	got := PodIPs(uplink(podV6, "fe80::1/64", podV4, "fd00:10:128::6/64"))
	want := []netip.Addr{netip.MustParsePrefix(podV6).Addr(), netip.MustParsePrefix(podV4).Addr()}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("first address of each family in the interface's order (-want +got):\n%s", diff)
	}
}
