package bridged

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/agent/podnet"
)

func TestNames(t *testing.T) {
	cases := map[string]Plan{
		"eth0":            {Uplink: "eth0", NIC: "eth0-nic", Bridge: "k6t-eth0", Tap: "tap0"},
		"net1":            {Uplink: "net1", NIC: "net1-nic", Bridge: "k6t-net1", Tap: "tap1"},
		"pod16477688c0e":  {Uplink: "pod16477688c0e", NIC: "16477688c0e-nic", Bridge: "k6t-16477688c0e", Tap: "tap16477688c0e"},
		"ovn-udn1":        {Uplink: "ovn-udn1", NIC: "ovn-udn1-nic", Bridge: "k6t-ovn-udn1", Tap: "tapovn-udn1"},
		"fifteencharname": {}, // a hash: only its length matters
	}
	for name, want := range cases {
		got := Names(name)
		if want.Uplink == "" {
			if len(got.NIC) != maxName || len(got.Bridge) != maxName || len(got.Tap) != maxName || got.NIC == name {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestServerAddress(t *testing.T) {
	withIPs := podnet.Interface{Name: "net1", IPs: []netip.Prefix{netip.MustParsePrefix("fd00::5/64"), netip.MustParsePrefix("10.2.0.5/24")}}
	for index, want := range map[int]string{0: "169.254.75.10/32", 1: "169.254.75.11/32", 10: "169.254.75.110/32"} {
		if got := NewPlan(withIPs, 1, index, true).Server.String(); got != want {
			t.Errorf("NIC %d: %s, want %s", index, got, want)
		}
	}
	if NewPlan(withIPs, 1, 0, false).Server.IsValid() || NewPlan(podnet.Interface{Name: "net1"}, 1, 0, true).Server.IsValid() {
		t.Error("there is a server though nothing is to be told")
	}
}
