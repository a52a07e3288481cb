package admission

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// rule is one row: a spec and what is said about it, "REASON FIELD: MESSAGE" each, in order.
type rule struct {
	name   string
	spec   string // YAML of a VMI spec
	update bool   // the object exists already
	gates  []string
	off    []string
	noPod  bool // bridge is not permitted on the pod network
	want   []string
}

func (r rule) policy() Policy {
	p := DefaultPolicy()
	p.Gates = gates(r.gates, r.off)
	p.BridgeOnPod = !r.noPod
	return p
}

func checkRules(t *testing.T, rows []rule) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			causes := ValidateSpec(field.NewPath("spec"), parseSpec(t, r.spec), r.policy(), !r.update)
			if diff := cmp.Diff(r.want, texts(causes)); diff != "" {
				t.Errorf("causes (-want +got):\n%s", diff)
			}
		})
	}
}

func parseSpec(t *testing.T, text string) *virtv1.VirtualMachineInstanceSpec {
	t.Helper()
	spec := &virtv1.VirtualMachineInstanceSpec{}
	if err := yaml.UnmarshalStrict([]byte(text), spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func texts(causes Causes) []string {
	var all []string
	for _, c := range causes {
		all = append(all, fmt.Sprintf("%s %s: %s", c.Type, c.Field, c.Message))
	}
	return all
}

// nic makes a spec of one NIC on the pod network, out of the fields of its interface.
func nic(fields string) string {
	return "domain: {devices: {interfaces: [{name: a, " + fields + "}]}}\nnetworks: [{name: a, pod: {}}]\n"
}

// secondary makes a spec of one NIC on a secondary network.
func secondary(fields string) string {
	return "domain: {devices: {interfaces: [{name: a, " + fields + "}]}}\nnetworks: [{name: a, multus: {networkName: flat}}]\n"
}

func TestNetworkRules(t *testing.T) {
	checkRules(t, []rule{
		{name: "nothing", spec: "domain: {devices: {}}"},
		{name: "masquerade", spec: nic("masquerade: {}")},
		{name: "bridge", spec: secondary("bridge: {}")},
		{name: "plugin", spec: nic("binding: {name: whatever}")},
		{name: "0a", spec: nic("slirp: {}, bridge: {}"),
			want: []string{"FieldValueInvalid spec.domain.devices.interfaces[0].slirp: Slirp interface support has been discontinued since v1.3"}},
		{name: "0b", spec: nic("passt: {}, bridge: {}"),
			want: []string{"FieldValueInvalid spec.domain.devices.interfaces[0].passt: Passt network binding has been discontinued since v1.3"}},
		{name: "0c", spec: nic("macvtap: {}, bridge: {}"),
			want: []string{"FieldValueInvalid spec.domain.devices.interfaces[0].macvtap: Macvtap network binding has been discontinued since v1.3"}},
		{name: "0 on update", update: true, spec: nic("slirp: {}, bridge: {}")},
		{name: "1", spec: `
domain: {devices: {interfaces: [{name: a, masquerade: {}}, {name: b, masquerade: {}}]}}
networks: [{name: a, pod: {}}, {name: b, pod: {}}]`,
			want: []string{"FieldValueDuplicate spec.interfaces: more than one interface is connected to a pod network in spec.interfaces"}},
		{name: "2", spec: `
domain: {devices: {interfaces: [{name: a, bridge: {}}, {name: b, bridge: {}}]}}
networks: [{name: a, multus: {networkName: x, default: true}}, {name: b, multus: {networkName: z, default: true}}]`,
			want: []string{"FieldValueInvalid spec.networks: Multus CNI should only have one default network"}},
		{name: "3", spec: `
domain: {devices: {interfaces: [{name: a, bridge: {}}, {name: b, bridge: {}}]}}
networks: [{name: a, pod: {}}, {name: b, multus: {networkName: z, default: true}}]`,
			want: []string{"FieldValueInvalid spec.networks: Pod network cannot be defined when Multus default network is defined"}},
		{name: "4", spec: "domain: {devices: {interfaces: [{name: a, bridge: {}}]}}\nnetworks: [{name: a}]",
			want: []string{"FieldValueRequired spec.networks[0]: should have a network type"}},
		{name: "5", spec: "domain: {devices: {interfaces: [{name: a, bridge: {}}]}}\nnetworks: [{name: a, pod: {}, multus: {networkName: x}}]",
			want: []string{"FieldValueRequired spec.networks[0]: should have only one network type"}},
		{name: "6 names the first only", spec: `
domain: {devices: {interfaces: [{name: a, bridge: {}}, {name: b, bridge: {}}]}}
networks: [{name: a, multus: {networkName: ""}}, {name: b, multus: {networkName: ""}}]`,
			want: []string{"FieldValueRequired spec.networks[0]: CNI delegating plugin must have a networkName"}},
	})
}

func TestBindingRules(t *testing.T) {
	const at = "spec.domain.devices.interfaces[0]"
	checkRules(t, []rule{
		{name: "states", spec: secondary("bridge: {}, state: up")},
		{name: "absent", spec: secondary("bridge: {}, state: absent")},
		{name: "7", spec: secondary("bridge: {}, state: Down"),
			want: []string{"FieldValueInvalid " + at + ".state: logical a interface state value is unsupported: Down"}},
		{name: "8", spec: secondary("sriov: {}, state: down"),
			want: []string{"FieldValueInvalid " + at + `.state: "a" interface's state "down" is not supported for SR-IOV NICs`}},
		{name: "9", spec: secondary("binding: {name: l2bridge}, state: absent"),
			want: []string{"FieldValueInvalid " + at + `.state: "a" interface's state "absent" is supported only for bridge binding`}},
		{name: "9 sriov", spec: secondary("sriov: {}, state: absent"),
			want: []string{"FieldValueInvalid " + at + `.state: "a" interface's state "absent" is supported only for bridge binding`}},
		{name: "10 pod", spec: nic("bridge: {}, state: absent"),
			want: []string{"FieldValueInvalid " + at + `.state: "a" interface's state "absent" is not supported on default networks`}},
		{name: "10 multus default",
			spec: "domain: {devices: {interfaces: [{name: a, bridge: {}, state: absent}]}}\nnetworks: [{name: a, multus: {networkName: x, default: true}}]",
			want: []string{"FieldValueInvalid " + at + `.state: "a" interface's state "absent" is not supported on default networks`}},
		{name: "11 none", spec: nic("model: virtio"),
			want: []string{"FieldValueInvalid " + at + ": logical a interface must have exactly one binding method or binding plugin"}},
		{name: "11 two", spec: nic("masquerade: {}, binding: {name: l2bridge}"),
			want: []string{"FieldValueInvalid " + at + ": logical a interface must have exactly one binding method or binding plugin"}},
		{name: "11 retired", update: true, spec: nic("macvtap: {}"),
			want: []string{"FieldValueInvalid " + at + ": logical a interface must have exactly one binding method or binding plugin"}},
		{name: "12", spec: secondary("masquerade: {}"),
			want: []string{"FieldValueInvalid " + at + ".name: Masquerade interface only implemented with pod network"}},
		{name: "13", spec: nic(`masquerade: {}, macAddress: "02:00:00:00:00:00"`),
			want: []string{"FieldValueInvalid " + at + ".macAddress: The requested MAC address is reserved for the in-pod bridge. Please choose another one."}},
		{name: "13 compares text", spec: nic(`masquerade: {}, macAddress: "02-00-00-00-00-00"`)},
		{name: "13 not for bridge", spec: secondary(`bridge: {}, macAddress: "02:00:00:00:00:00"`)},
		{name: "14", noPod: true, spec: nic("bridge: {}"),
			want: []string{"FieldValueInvalid " + at + ".name: Bridge on pod network configuration is not enabled under kubevirt-config"}},
		{name: "14 secondary", noPod: true, spec: secondary("bridge: {}")},
		{name: "15", off: []string{GatePasstBinding}, spec: nic("passtBinding: {}"),
			want: []string{"FieldValueInvalid " + at + ".name: PasstBinding feature gate is not enabled"}},
		{name: "passt", spec: nic("passtBinding: {}")},
		{name: "16", spec: secondary("passtBinding: {}"),
			want: []string{"FieldValueInvalid " + at + ".name: PasstBinding interface only implemented with pod network"}},
	})
}

func TestNameRules(t *testing.T) {
	checkRules(t, []rule{
		{name: "17", spec: `
domain: {devices: {interfaces: [{name: a, bridge: {}}]}}
networks: [{name: a, multus: {networkName: x}}, {name: a, multus: {networkName: z}}]`,
			want: []string{`FieldValueDuplicate spec.networks[1].name: Network with name "a" already exists, every network must have a unique name`}},
		{name: "19", spec: "domain: {devices: {}}\nnetworks: [{name: a, pod: {}}]",
			want: []string{"FieldValueRequired spec.networks[0].name: spec.networks[0].name 'a' not found."}},
		{name: "20", spec: "domain: {devices: {interfaces: [{name: a, bridge: {}}, {name: a, bridge: {}}]}}\nnetworks: [{name: a, multus: {networkName: x}}]",
			want: []string{"FieldValueDuplicate spec.domain.devices.interfaces[1].name: Only one interface can be connected to one specific network"}},
		{name: "21", spec: "domain: {devices: {interfaces: [{name: a, masquerade: {}}]}}",
			want: []string{"FieldValueInvalid spec.domain.devices.interfaces[0].name: spec.domain.devices.interfaces[0].name 'a' not found."}},
		{name: "22", spec: "domain: {devices: {interfaces: [{name: a.b, bridge: {}}]}}\nnetworks: [{name: a.b, multus: {networkName: x}}]",
			want: []string{"FieldValueInvalid spec.domain.devices.interfaces[0].name: Network interface name can only contain alphabetical characters, numbers, dashes (-) or underscores (_)"}},
		{name: "22 accepts", spec: "domain: {devices: {interfaces: [{name: A-b_9, bridge: {}}]}}\nnetworks: [{name: A-b_9, multus: {networkName: x}}]"},
	})
}

func TestClaimRules(t *testing.T) {
	claim := func(iface, networks, claims string) string {
		return "domain: {devices: {interfaces: [" + iface + "]}}\nnetworks: [" + networks + "]\nresourceClaims: [" + claims + "]\n"
	}
	on := []string{GateNetworkDevicesWithDRA}
	const sriov, network, defined = "{name: a, sriov: {}}", "{name: a, resourceClaim: {claimName: c, requestName: r}}", "{name: c}"
	checkRules(t, []rule{
		{name: "accepted", gates: on, spec: claim(sriov, network, defined)},
		{name: "18", spec: claim(sriov, network, defined),
			want: []string{"FieldValueInvalid spec.networks: vmi.spec.networks contains DRA networks but NetworkDevicesWithDRA feature gate is not enabled"}},
		{name: "18b", gates: on, spec: claim(sriov+", {name: b, bridge: {}}", network+", {name: b, multus: {networkName: x}}", defined),
			want: []string{"FieldValueInvalid spec.networks: mixing Multus and DRA resourceClaim networks in the same VMI is not supported"}},
		{name: "18c", gates: on, spec: claim("{name: a, bridge: {}}", network, defined),
			want: []string{`FieldValueInvalid spec.domain.devices.interfaces: DRA network "a" requires an SR-IOV or binding plugin interface`}},
		{name: "18d", gates: on, spec: claim(sriov, "{name: a, resourceClaim: {}}", defined), want: []string{
			"FieldValueRequired spec.networks[0].resourceClaim.claimName: claimName is required for DRA network",
			"FieldValueRequired spec.networks[0].resourceClaim.requestName: requestName is required for DRA network"}},
		{name: "18e", gates: on, spec: claim(sriov, network, ""),
			want: []string{`FieldValueNotFound spec.networks[0].resourceClaim.claimName: network references resourceClaim "c" which is not defined in spec.resourceClaims`}},
		{name: "18f", gates: on, spec: claim(sriov+", {name: b, sriov: {}}", network+", {name: b, resourceClaim: {claimName: c, requestName: r}}", defined),
			want: []string{`FieldValueDuplicate spec.networks[1]: duplicate claimName/requestName combination "c/r"`}},
	})
}

func TestInterfaceRules(t *testing.T) {
	const at = "spec.domain.devices.interfaces[0]"
	rows := []rule{
		{name: "23", spec: nic("masquerade: {}, model: e100"),
			want: []string{"FieldValueNotSupported " + at + ".model: interface " + at + ".name uses model e100 that is not supported."}},
		{name: "24", spec: nic("masquerade: {}, macAddress: de-ad-beef"),
			want: []string{"FieldValueInvalid " + at + ".macAddress: interface " + at + ".name has malformed MAC address (de-ad-beef)."}},
		{name: "24 accepts dots", spec: nic("masquerade: {}, macAddress: dead.beef.0001")},
		{name: "multicast", spec: nic(`masquerade: {}, macAddress: "01:00:5e:00:00:01"`),
			want: []string{"FieldValueInvalid " + at + ".macAddress: interface " + at + ".name has a MAC address that no single host can have (01:00:5e:00:00:01); choose a unicast address such as 02:00:00:00:00:11."}},
		{name: "all zero", spec: secondary(`bridge: {}, macAddress: "00:00:00:00:00:00"`),
			want: []string{"FieldValueInvalid " + at + ".macAddress: interface " + at + ".name has a MAC address that no single host can have (00:00:00:00:00:00); choose a unicast address such as 02:00:00:00:00:11."}},
		{name: "25", spec: nic(`masquerade: {}, macAddress: "de:ad:00:00:be:af:00:01"`),
			want: []string{"FieldValueInvalid " + at + ".macAddress: interface " + at + ".name has too long MAC address (de:ad:00:00:be:af:00:01)."}},
		{name: "26", spec: nic(`masquerade: {}, pciAddress: "0000:80.10.1"`),
			want: []string{"FieldValueInvalid " + at + ".pciAddress: interface " + at + ".name has malformed PCI address (0000:80.10.1)."}},
		{name: "26 accepts", spec: nic(`masquerade: {}, pciAddress: "0000:81:01.0"`)},
		{name: "27", spec: nic("masquerade: {}, ports: [{name: web, port: 80}, {name: web, port: 81}]"),
			want: []string{"FieldValueDuplicate " + at + ".ports[1].name: Duplicate name of the port: web"}},
		{name: "28", spec: nic("masquerade: {}, ports: [{name: Web, port: 80}]"),
			want: []string{"FieldValueInvalid " + at + ".ports[0].name: Invalid name of the port: Web"}},
		{name: "29", spec: nic("masquerade: {}, ports: [{port: 0}]"),
			want: []string{"FieldValueRequired " + at + ".ports[0].port: Port field is mandatory."}},
		{name: "30 below", spec: nic("masquerade: {}, ports: [{port: -1}]"),
			want: []string{"FieldValueInvalid " + at + ".ports[0].port: Port field must be in range 0 < x < 65536."}},
		{name: "30 above", spec: nic("masquerade: {}, ports: [{port: 65536}]"),
			want: []string{"FieldValueInvalid " + at + ".ports[0].port: Port field must be in range 0 < x < 65536."}},
		{name: "30 ends are accepted", spec: nic("masquerade: {}, ports: [{port: 1}, {port: 65535, protocol: UDP}]")},
		{name: "31", spec: nic("masquerade: {}, ports: [{port: 80, protocol: tcp}]"),
			want: []string{"FieldValueInvalid " + at + ".ports[0].protocol: Unknown protocol, only TCP or UDP allowed"}},
		{name: "ports elsewhere are free", spec: secondary("bridge: {}, ports: [{port: 0, protocol: sctp}]")},
		{name: "equal numbers are free", spec: nic("masquerade: {}, ports: [{port: 80}, {port: 80}]")},
		{name: "39", spec: nic("masquerade: {}, dhcpOptions: {privateOptions: [{option: 240, value: x}, {option: 240, value: z}]}"),
			want: []string{"FieldValueInvalid spec: Found Duplicates: you have provided duplicate DHCPPrivateOptions"}},
		{name: "40", spec: nic("masquerade: {}, dhcpOptions: {privateOptions: [{option: 223, value: x}, {option: 255, value: z}]}"),
			want: []string{"FieldValueInvalid spec: provided DHCPPrivateOptions are out of range, must be in range 224 to 254"}},
		{name: "41", spec: nic(`masquerade: {}, dhcpOptions: {ntpServers: [10.0.0.1, "fd00::1", ntp.example]}`), want: []string{
			"FieldValueInvalid " + at + ".dhcpOptions.ntpServers[1]: NTP servers must be a list of valid IPv4 addresses.",
			"FieldValueInvalid " + at + ".dhcpOptions.ntpServers[2]: NTP servers must be a list of valid IPv4 addresses."}},
	}
	for _, model := range models {
		rows = append(rows, rule{name: "23 accepts " + model, spec: nic("masquerade: {}, model: " + model)})
	}
	checkRules(t, rows)
}

func TestPortRangeRules(t *testing.T) {
	const at = "spec.domain.devices.interfaces[0]"
	on := []string{GatePortRanges}
	ranges := func(all string) string { return nic("masquerade: {}, portRanges: [" + all + "]") }
	eleven := "{protocol: TCP, start: 1, end: 1}"
	for i := 2; i <= 11; i++ {
		eleven += fmt.Sprintf(", {protocol: TCP, start: %d, end: %d}", i, i)
	}
	checkRules(t, []rule{
		{name: "accepted", gates: on, spec: ranges("{protocol: TCP, start: 80, end: 90}, {protocol: UDP, start: 80, end: 80}")},
		{name: "32", spec: ranges("{protocol: TCP, start: 80, end: 90}"),
			want: []string{"FieldValueInvalid " + at + ".name: portRanges is specified on interface but the PortRangesSpec feature gate is not enabled"}},
		{name: "33", gates: on, spec: nic("masquerade: {}, ports: [{port: 80}], portRanges: [{protocol: TCP, start: 80, end: 90}]"),
			want: []string{"FieldValueInvalid " + at + ".name: Cannot define both ports and portRanges on interface"}},
		{name: "34", gates: on, spec: nic("bridge: {}, portRanges: [{protocol: TCP, start: 80, end: 90}]"),
			want: []string{"FieldValueInvalid " + at + ".name: portRanges are only supported on masquerade interfaces"}},
		{name: "35", gates: on, spec: ranges(eleven),
			want: []string{"FieldValueInvalid " + at + ".portRanges: No more than 10 portRanges are allowed"}},
		{name: "36", gates: on, spec: ranges(`{protocol: "", start: 80, end: 90}`),
			want: []string{"FieldValueInvalid " + at + ".portRanges[0].protocol: Unknown protocol, only TCP or UDP allowed"}},
		{name: "37", gates: on, spec: ranges("{protocol: TCP, start: 0, end: 65536}"), want: []string{
			"FieldValueInvalid " + at + ".portRanges[0].start: Start must be a valid port number, 0 < x < 65536",
			"FieldValueInvalid " + at + ".portRanges[0].end: End must be a valid port number, 0 < x < 65536"}},
		{name: "37 order", gates: on, spec: ranges("{protocol: TCP, start: 90, end: 80}"),
			want: []string{"FieldValueInvalid " + at + ".portRanges[0].start: Start must be less than or equal to end"}},
		{name: "38", gates: on, spec: ranges("{protocol: TCP, start: 80, end: 90}, {protocol: TCP, start: 90, end: 99}"),
			want: []string{"FieldValueInvalid " + at + ".portRanges: TCP portRanges [80-90] and [90-99] overlap"}},
	})
}
