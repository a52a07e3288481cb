package cni

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/golden"
	"patchbay/internal/podnetworks"
)

func testWiring(t *testing.T) wiring {
	t.Helper()
	s := sandbox{pod: PodRef{"red", "web", "u1"}, containerID: "c1", netns: "/run/netns/c1", ifName: "eth0"}
	given := map[string]podnetworks.Network{podnetworks.Default: {
		IPs:      []netip.Prefix{netip.MustParsePrefix("10.128.0.5/23"), netip.MustParsePrefix("fd00:10:128::5/64")},
		MAC:      podnetworks.MAC(netip.MustParseAddr("10.128.0.5")),
		Gateways: []netip.Addr{netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00:10:128::1")},
		Role:     podnetworks.Primary,
	}}
	w, err := plan(planFor{sandbox: s, wanted: Wanted{Pod: s.pod, Given: given}, mtu: 1400})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestResult(t *testing.T) {
	w := testWiring(t)
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			result, err := render(w.record, version)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "json", indent(t, result))
		})
	}
}

// What is plugged must be what OVN expects: iface-id and iface-id-ver of the logical port.
func TestPort(t *testing.T) {
	w := testWiring(t)
	data, err := json.Marshal(map[string]any{"port": portOf(w.record, w.record.Interfaces[0]), "veth": vethOf(w.record, w.record.Interfaces[0])})
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "json", indent(t, data))
}

func TestSamePrevResult(t *testing.T) {
	w := testWiring(t)
	for version, good := range map[string]bool{"0.4.0": true, "1.1.0": true} {
		result, err := render(w.record, version)
		if err != nil {
			t.Fatal(err)
		}
		c := parsed(t, "CHECK", map[string]any{"cniVersion": version, "prevResult": json.RawMessage(result)})
		if err := samePrevResult(c.conf, w.record); (err == nil) != good {
			t.Errorf("%s: %v", version, err)
		}
		if err := samePrevResult(c.conf, podnet.Pod{}); err == nil {
			t.Errorf("%s: another pod's addresses were accepted", version)
		}
	}
}

func indent(t *testing.T, data []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, data, "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n"
}
