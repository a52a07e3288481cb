package podnet

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseNetworks(t *testing.T) {
	got, err := ParseNetworks(`{
		"default":{"ip_addresses":["10.128.0.5/23","fd00:10:128::5/64"],"mac_address":"0a:58:0a:80:00:05",
			"gateway_ips":["10.128.0.1","fd00:10:128::1"],"mtu":1400,"role":"primary"},
		"red/blue":{"ip_addresses":[],"mac_address":"02:00:00:00:00:01","role":"secondary",
			"routes":[{"dest":"10.96.0.0/16","nextHop":"10.20.0.1"}],"tunnel_id":12}}`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Attachment{
		"default": {
			IPs:      []netip.Prefix{netip.MustParsePrefix("10.128.0.5/23"), netip.MustParsePrefix("fd00:10:128::5/64")},
			MAC:      net.HardwareAddr{0x0a, 0x58, 10, 128, 0, 5},
			Gateways: []netip.Addr{netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:10:128::1")},
			MTU:      1400, Role: Primary,
		},
		"red/blue": {
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Role: Secondary,
			Routes: []Route{{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParseAddr("10.20.0.1")}},
		},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseNetworksNamesTheFault(t *testing.T) {
	for value, want := range map[string]string{
		`{`: "pod-networks",
		`{"default":{"mac_address":"x"}}`: `network "default": mac_address`,
		`{"default":{"mac_address":"02:00:00:00:00:01","ip_addresses":["10.0.0.1"]}}`:              "ip_addresses",
		`{"default":{"mac_address":"02:00:00:00:00:01","gateway_ips":["no"]}}`:                     "gateway_ips",
		`{"default":{"mac_address":"02:00:00:00:00:01","routes":[{"dest":"x"}]}}`:                  "routes",
		`{"default":{"mac_address":"02:00:00:00:00:01","routes":[{"dest":"::/0","nextHop":"x"}]}}`: "nextHop",
	} {
		if _, err := ParseNetworks(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error about %s", value, err, want)
		}
	}
}
