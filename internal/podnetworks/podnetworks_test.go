package podnetworks

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

var comparable = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestPodAnnotationIsWhatOVNKubernetesWrites(t *testing.T) {
	dual := prefixes("10.128.0.5/23", "fd00:10:128::5/64")
	networks := map[string]Network{Default: {
		IPs: dual, MAC: MAC(dual[0].Addr()), MTU: 1400, Role: Primary,
		Gateways: []netip.Addr{Gateway(dual[0]), Gateway(dual[1])},
	}}
	text, err := FormatPod(networks)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"default":{"ip_addresses":["10.128.0.5/23","fd00:10:128::5/64"],"mac_address":"0a:58:0a:80:00:05",` +
		`"gateway_ips":["10.128.0.1","fd00:10:128::1"],"mtu":1400,"role":"primary"}}`
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("annotation (-want +got):\n%s", diff)
	}
	back, err := ParsePod(map[string]string{PodAnnotation: text})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(networks, back, comparable); diff != "" {
		t.Errorf("changed by writing and reading (-want +got):\n%s", diff)
	}
}

func TestNodeAnnotation(t *testing.T) {
	subnets := map[string][]netip.Prefix{Default: prefixes("10.128.0.0/23", "fd00:10:128::/64")}
	text, err := FormatNode(subnets)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"default":["10.128.0.0/23","fd00:10:128::/64"]}`; text != want {
		t.Errorf("got %s, want %s", text, want)
	}
	back, err := ParseNode(map[string]string{NodeAnnotation: text})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(subnets, back, comparable); diff != "" {
		t.Errorf("changed by writing and reading (-want +got):\n%s", diff)
	}
}

func TestAddressesOfASlice(t *testing.T) {
	cases := []struct{ subnet, gateway, management, mac string }{
		{"10.128.2.0/23", "10.128.2.1", "10.128.2.2", "0a:58:0a:80:02:01"},
		{"fd00:10:128:1::/64", "fd00:10:128:1::1", "fd00:10:128:1::2", "0a:58:26:4d:e3:dc"},
	}
	for _, c := range cases {
		subnet := netip.MustParsePrefix(c.subnet)
		got := []string{Gateway(subnet).String(), Management(subnet).String(), MAC(Gateway(subnet)).String()}
		if diff := cmp.Diff([]string{c.gateway, c.management, c.mac}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.subnet, diff)
		}
	}
}

func TestInterfaceName(t *testing.T) {
	for network, want := range map[string]string{"blue": "pod16477688c0e", "red": "podb1f51a511f1"} {
		if got := InterfaceName(network); got != want {
			t.Errorf("InterfaceName(%q) = %q, want %q", network, got, want)
		}
	}
}
