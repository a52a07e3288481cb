package nmstate

import (
	"errors"
	"strings"
	"testing"
)

// TestRefusals: documents that no node takes, and what is said.
func TestRefusals(t *testing.T) {
	bridge := func(text string) string {
		return "interfaces: [{name: br1, type: linux-bridge, bridge: {" + text + "}}]"
	}
	port := func(vlan string) string { return bridge("port: [{name: eth1, vlan: {" + vlan + "}}]") }
	for name, c := range map[string]struct{ document, want string }{
		"no YAML":              {"interfaces: [", "InvalidArgument: the desired state is not YAML"},
		"unknown field":        {"interfaces: [{name: eth1, mut: 5}]", `unknown field "interfaces[0].mut"`},
		"unknown field in stp": {bridge("options: {stp: {enable: true}}"), "unknown field"},
		"unknown section":      {"interface: []", `unknown field "interface"`},
		"wrong kind of value":  {"interfaces: [{name: eth1, mtu: big}]", "InvalidArgument: json: cannot unmarshal string"},
		"no name":              {"interfaces: [{type: dummy}]", "an interface has no name"},
		"long name":            {"interfaces: [{name: abcdefghijklmnop}]", "1 to 15 characters"},
		"state":                {"interfaces: [{name: eth1, state: gone}]", `has the state "gone"; use up, down, absent or ignore`},
		"type":                 {"interfaces: [{name: v1, type: vxlan}]", `NotSupportedError: Interface v1: type "vxlan" is not supported`},
		"twice":                {"interfaces: [{name: eth1}, {name: eth1}]", "Interface eth1 is listed twice"},
		"MAC address":          {`interfaces: [{name: eth1, mac-address: "01:00:00:00:00:01"}]`, "write a unicast address"},
		"MTU":                  {"interfaces: [{name: eth1, mtu: 20}]", "has the mtu 20; choose 68 to 65535"},
		"bond without mode":    {"interfaces: [{name: bond0, type: bond, link-aggregation: {port: [eth1]}}]", "Bond mode is mandatory for new bond interface: bond0"},
		"bond":                 {"interfaces: [{name: bond0, type: bond, link-aggregation: {mode: active-backup}}]", "bonds are not supported"},
		"vlan without base":    {"interfaces: [{name: v5, type: vlan, vlan: {id: 5}}]", "Missing 'vlan.base-iface' for interface 'v5'"},
		"vlan id":              {"interfaces: [{name: v5, type: vlan, vlan: {base-iface: eth1, id: 5000}}]", "choose 1 to 4094"},
		"overbooked":           {"interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: eth1}]}}, {name: br2, type: ovs-bridge, bridge: {port: [{name: eth1}]}}]", "Port eth1 is overbooked by two controller: br1, br2"},
		"empty trunk":          {port("mode: trunk"), "Bridge VLAN filtering trunk mode cannot have empty trunk-tags"},
		"tag in trunk":         {port("mode: trunk, tag: 5, trunk-tags: [{id: 6}]"), "`tag` cannot be use in trunk mode without `enable-native`"},
		"native access":        {port("mode: access, tag: 5, enable-native: true"), "`enable-native: true` cannot be set in access mode"},
		"access with trunk":    {port("mode: access, tag: 5, trunk-tags: [{id: 6}]"), "access mode cannot have trunk-tags defined"},
		"overlapping trunk":    {port("mode: trunk, trunk-tags: [{id: 6}, {id-range: {min: 5, max: 7}}]"), "trunk-tags overlap at 6"},
		"range upside down":    {port("mode: trunk, trunk-tags: [{id-range: {min: 7, max: 5}}]"), "out of range"},
		"port twice":           {bridge("port: [{name: eth1}, {name: eth1}]"), "lists port eth1 twice"},
		"foreign options":      {bridge("options: {fail-mode: secure}"), "has options of an ovs-bridge"},
		"OVS with MAC":         {`interfaces: [{name: ovs0, type: ovs-bridge, mac-address: "02:00:00:00:00:01"}]`, "OVS Bridge ovs0 can not hold MAC address, please set MAC address on OVS internal interface instead"},
		"OVS with address":     {"interfaces: [{name: ovs0, type: ovs-bridge, ipv4: {enabled: true, address: [{ip: 10.0.0.1, prefix-length: 8}]}}]", "can not hold IP addresses"},
		"localnet twice":       {"ovn: {bridge-mappings: [{localnet: a, bridge: b}, {localnet: a, bridge: c}]}", "Found duplicate `localnet` key a"},
		"mapping to nowhere":   {"ovn: {bridge-mappings: [{localnet: a}]}", "mapping for `localnet` key a missing the `bridge` attribute"},
		"mapping with comma":   {"ovn: {bridge-mappings: [{localnet: 'a,b', bridge: c}]}", "without comma and colon"},
		"IPv6 in ipv4":         {"interfaces: [{name: eth1, ipv4: {enabled: true, address: [{ip: '2001:db8::1', prefix-length: 64}]}}]", "Got IPv6 address 2001:db8::1 in ipv4 config section"},
		"prefix length":        {"interfaces: [{name: eth1, ipv4: {enabled: true, address: [{ip: 10.0.0.1, prefix-length: 33}]}}]", "choose 1 to 32"},
		"dhcp":                 {"interfaces: [{name: eth1, ipv4: {enabled: true, dhcp: true}}]", "NotSupportedError: Interface eth1: ipv4.dhcp is not supported"},
		"route":                {"routes: {config: [{destination: 10.0.0.0/8}]}", "a route needs destination and next-hop-interface"},
		"route destination":    {"routes: {config: [{destination: ten, next-hop-interface: eth1}]}", `route destination "ten" is no network`},
		"resolver":             {"dns-resolver: {config: {server: [192.0.2.53]}}", "the node's resolver is not changed"},
		"the node's identity":  {"ovs-db: {external_ids: {system-id: x}}", "joins the node to the cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.document))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if !errors.Is(err, ErrDocument) {
				t.Error("the document is to blame, and the error does not say so")
			}
		})
	}
}

// TestUnfit: documents that this node cannot carry out.
func TestUnfit(t *testing.T) {
	for name, c := range map[string]struct{ document, want string }{
		"no such card":          {"interfaces: [{name: eth7, type: ethernet}]", "InvalidArgument: Ethernet interface eth7 does not exists"},
		"no such interface":     {"interfaces: [{name: eth7}]", "give it a type"},
		"other type":            {"interfaces: [{name: br9, type: dummy}]", "Interface br9 exists and is of type linux-bridge, not dummy"},
		"no such port":          {"interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: eth7}]}}]", "port eth7 does not exist"},
		"port is removed":       {"interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: veth9}]}}, {name: veth9, state: absent}]", "to be removed by the same policy"},
		"address on a port":     {"interfaces: [{name: br1, type: linux-bridge, bridge: {port: [{name: eth1}]}}, {name: eth1, ipv4: {enabled: true, address: [{ip: 10.0.0.1, prefix-length: 8}]}}]", "cannot hold IP addresses"},
		"controller is none":    {"interfaces: [{name: eth1, controller: eth2}]", "which is no bridge"},
		"no such base":          {"interfaces: [{name: v5, type: vlan, vlan: {base-iface: eth7, id: 5}}]", "eth7 does not exist"},
		"loose ovs-interface":   {"interfaces: [{name: host1, type: ovs-interface}]", "a port of no ovs-bridge"},
		"the overlay's":         {"interfaces: [{name: br-int, type: ovs-bridge, state: absent}]", "leave it out of the policy"},
		"no such source of MAC": {"interfaces: [{name: br1, type: linux-bridge, copy-mac-from: eth7}]", "copy-mac-from names eth7"},
	} {
		t.Run(name, func(t *testing.T) {
			desired, err := Parse([]byte(c.document))
			if err != nil {
				t.Fatal(err)
			}
			_, err = Merge(node(t), desired, filtering)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if errors.Is(err, ErrDocument) {
				t.Error("another node may take it, and the error says that none does")
			}
		})
	}
}

func TestEmptyDocuments(t *testing.T) {
	for _, document := range []string{"", "{}", "null"} {
		s, err := Parse([]byte(document))
		if err != nil || !s.Empty() {
			t.Errorf("%q: %+v, %v", document, s, err)
		}
	}
}
