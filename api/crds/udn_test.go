package crds_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// network makes a network of a kind out of its spec.
func network(t *testing.T, kind, spec string) *unstructured.Unstructured {
	t.Helper()
	text := "apiVersion: k8s.ovn.org/v1\nkind: " + kind + "\nmetadata: {name: net}\nspec: " + spec + "\n"
	object := &unstructured.Unstructured{}
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := object.UnmarshalJSON(asJSON); err != nil {
		t.Fatal(err)
	}
	if kind == "UserDefinedNetwork" {
		object.SetNamespace("default")
	}
	return object
}

func layer2(fields string) string { return "{topology: Layer2, layer2: {" + fields + "}}" }

func localnet(fields string) string {
	return "{namespaceSelector: {}, network: {topology: Localnet, localnet: {role: Secondary, physicalNetworkName: p, " + fields + "}}}"
}

func layer3(fields string) string { return "{topology: Layer3, layer3: {" + fields + "}}" }

const (
	udn  = "UserDefinedNetwork"
	cudn = "ClusterUserDefinedNetwork"
)

// One row per rule of the schema: what is refused, and in which words.
func TestNetworkRules(t *testing.T) {
	ctx, c := applied(t)
	const gateways = "role: Primary, subnets: [10.1.0.0/16, 'fd00::/64'], defaultGatewayIPs: "
	for _, tc := range []struct{ kind, spec, want string }{
		{udn, "{topology: layer2, layer2: {role: Primary, subnets: [10.1.0.0/16]}}", "Unsupported value"},
		{udn, "{topology: Layer2, layer3: {role: Primary, subnets: [{cidr: 10.1.0.0/16}]}}", "spec.layer2 is required when topology is Layer2 and forbidden otherwise"},
		{udn, "{topology: Layer3, layer2: {role: Primary, subnets: [10.1.0.0/16]}}", "spec.layer3 is required when topology is Layer3 and forbidden otherwise"},
		{cudn, "{namespaceSelector: {}, network: {topology: Localnet}}", "spec.localnet is required when topology is Localnet and forbidden otherwise"},
		{cudn, "{network: {topology: Layer2, layer2: {role: Primary, subnets: [10.1.0.0/16]}}}", "namespaceSelector: Required value"},
		{cudn, "{namespaceSelector: {}, network: {topology: Layer2, transport: EVPN, layer2: {role: Primary, subnets: [10.1.0.0/16]}}}", "Unsupported value"},
		{udn, "{topology: Layer2, ipam: {lifecycle: Persistent}, layer2: {role: Primary, subnets: [10.1.0.0/16]}}", `unknown field "spec.ipam"`},
		{udn, layer2("role: Primary, subnets: [10.1.0.0]"), "CIDR is invalid"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16, 10.2.0.0/16]"), "When 2 CIDRs are set, they must be from different IP families"},
		{udn, layer2("role: Primary"), "Subnets is required with ipam.mode is Enabled or unset"},
		{udn, layer2("role: Primary, ipam: {mode: Enabled}"), "Subnets is required with ipam.mode is Enabled or unset"},
		{udn, layer2("role: Secondary, ipam: {mode: Disabled}, subnets: [10.1.0.0/16]"), "Subnets must be unset when ipam.mode is Disabled"},
		{udn, layer2("role: Primary, ipam: {mode: Disabled}"), "Disabled ipam.mode is only supported for Secondary network"},
		{udn, layer2("role: Secondary, ipam: {mode: Disabled, lifecycle: Persistent}"), "lifecycle Persistent is only supported when ipam.mode is Enabled"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], ipam: {}"), "should have at least 1 properties"},
		{udn, layer2("role: Secondary, subnets: [10.1.0.0/16], joinSubnets: [100.70.0.0/16]"), "JoinSubnets is only supported for Primary network"},
		{udn, layer2("role: Primary, mtu: 1279, subnets: ['fd00::/64']"), "MTU should be greater than or equal to 1280 when IPv6 subnet is used"},
		{udn, layer2("role: Primary, mtu: 575, subnets: [10.1.0.0/16]"), "should be greater than or equal to 576"},
		{udn, layer2("role: Secondary, subnets: [10.1.0.0/16], defaultGatewayIPs: [10.1.0.9]"), "defaultGatewayIPs is only supported for Primary network"},
		{udn, layer2(gateways + "[10.1.0.x, 'fd00::9']"), "IP is invalid"},
		{udn, layer2(gateways + "[10.1.0.9, 10.1.0.8]"), "When 2 IPs are set, they must be from different IP families"},
		{udn, layer2(gateways + "[10.9.0.9, 'fd00::9']"), "defaultGatewayIPs must belong to one of the subnets specified in the subnets field"},
		{udn, layer2(gateways + "[10.1.0.9]"), "defaultGatewayIPs must be specified for all IP families"},
		{udn, layer2(gateways + "[10.1.0.9, 'fd00::9'], infrastructureSubnets: [10.1.5.0/24]"), "defaultGatewayIPs have to belong to infrastructureSubnets"},
		{udn, layer2("role: Secondary, ipam: {mode: Disabled}, reservedSubnets: [10.1.5.0/24]"), "reservedSubnets must be unset when subnets is unset"},
		{udn, layer2("role: Secondary, subnets: [10.1.0.0/16], reservedSubnets: [10.1.5.0/24]"), "reservedSubnets is only supported for Primary network"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], reservedSubnets: [10.2.5.0/24]"), "reservedSubnets must be subnetworks of the networks specified in the subnets field"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], reservedSubnets: [10.1.5.1/24]"), "reservedSubnets must be a masked network address (no host bits set)"},
		{udn, layer2("role: Secondary, subnets: [10.1.0.0/16], infrastructureSubnets: [10.1.5.0/24]"), "infrastructureSubnets is only supported for Primary network"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], infrastructureSubnets: [10.2.5.0/24]"), "infrastructureSubnets must be subnetworks of the networks specified in the subnets field"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], infrastructureSubnets: [10.1.5.1/24]"), "infrastructureSubnets must be a masked network address (no host bits set)"},
		{udn, layer2("role: Primary, subnets: [10.1.0.0/16], infrastructureSubnets: [10.1.5.0/24], reservedSubnets: [10.1.4.0/23]"), "infrastructureSubnets and reservedSubnets must not overlap"},
		{cudn, localnet("ipam: {mode: Disabled}, subnets: [10.1.0.0/16]"), "Subnets is required with ipam.mode is Enabled or unset, and forbidden otherwise"},
		{cudn, localnet("mtu: 1500"), "Subnets is required with ipam.mode is Enabled or unset, and forbidden otherwise"},
		{cudn, localnet("ipam: {mode: Disabled}, excludeSubnets: [10.1.0.0/24]"), "excludeSubnets must be unset when subnets is unset"},
		{cudn, localnet("subnets: [10.1.0.0/16], excludeSubnets: [10.2.0.0/24]"), "excludeSubnets must be subnetworks of the networks specified in the subnets field"},
		{cudn, localnet("subnets: [10.1.0.0/16], vlan: {mode: Access}"), "vlan access config is required when vlan mode is 'Access', and forbidden otherwise"},
		{cudn, localnet("subnets: [10.1.0.0/16], vlan: {mode: Access, access: {id: 4095}}"), "should be less than or equal to 4094"},
		{cudn, "{namespaceSelector: {}, network: {topology: Localnet, localnet: {role: Secondary, physicalNetworkName: 'a:b', ipam: {mode: Disabled}}}}", "physicalNetworkName cannot contain `,` or `:` characters"},
		{cudn, "{namespaceSelector: {}, network: {topology: Localnet, localnet: {role: Primary, physicalNetworkName: p, subnets: [10.1.0.0/16]}}}", "Localnet topology is only supported for Secondary role"},
		{udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16, hostSubnet: 16}]"), "HostSubnet must be smaller than CIDR subnet"},
		{udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16, hostSubnet: 32}]"), "HostSubnet must < 32 for ipv4 CIDR"},
		{udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 10.1.0.0/16}]"), "Subnets with same CIDR are not allowed"},
		{udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 10.1.4.0/24}]"), "Subnets must not overlap or contain each other"},
		{udn, layer3("role: Secondary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 10.2.0.0/16}]"), "When 2 CIDRs are set, they must be from different IP families"},
		{udn, layer3("role: Secondary, subnets: [{cidr: 10.1.0.0/16}], joinSubnets: [100.70.0.0/16]"), "JoinSubnets is only supported for Primary network"},
	} {
		err := create(ctx, c, network(t, tc.kind, tc.spec))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s\n got %v\nwant %s", tc.spec, err, tc.want)
		}
	}
}

// What a network is cannot be changed; whom a cluster's network serves, and a routed network's size, can.
func TestNetworkChanges(t *testing.T) {
	ctx, c := applied(t)
	const shared = "{namespaceSelector: {matchLabels: {a: %s}}, network: {topology: Layer2, layer2: {role: Primary, subnets: [%s]}}}"
	for name, tc := range map[string]struct{ kind, before, after, want string }{
		"selector":        {cudn, fmt.Sprintf(shared, "b", "10.1.0.0/16"), fmt.Sprintf(shared, "c", "10.1.0.0/16"), ""},
		"shared subnet":   {cudn, fmt.Sprintf(shared, "b", "10.1.0.0/16"), fmt.Sprintf(shared, "b", "10.2.0.0/16"), "Layer2 is immutable"},
		"subnet":          {udn, layer2("role: Primary, subnets: [10.1.0.0/16]"), layer2("role: Primary, subnets: [10.2.0.0/16]"), "Layer2 is immutable"},
		"topology":        {udn, layer2("role: Primary, subnets: [10.1.0.0/16]"), layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), "Topology is immutable"},
		"localnet":        {cudn, localnet("subnets: [10.1.0.0/16]"), localnet("subnets: [10.2.0.0/16]"), "Localnet is immutable"},
		"more subnets":    {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 10.2.0.0/16}]"), ""},
		"fewer subnets":   {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 10.2.0.0/16}]"), layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), "Removing existing subnets is not allowed"},
		"slices":          {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16, hostSubnet: 25}]"), "hostSubnet is immutable"},
		"secondary grows": {udn, layer3("role: Secondary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Secondary, subnets: [{cidr: 10.1.0.0/16}, {cidr: 'fd00::/48'}]"), "Subnets is immutable for Secondary role"},
		"role":            {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Secondary, subnets: [{cidr: 10.1.0.0/16}]"), "role is immutable"},
		"mtu":             {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Primary, mtu: 1300, subnets: [{cidr: 10.1.0.0/16}]"), "mtu is immutable"},
		"joins":           {udn, layer3("role: Primary, subnets: [{cidr: 10.1.0.0/16}]"), layer3("role: Primary, joinSubnets: [100.70.0.0/16], subnets: [{cidr: 10.1.0.0/16}]"), "joinSubnets is immutable"},
	} {
		t.Run(name, func(t *testing.T) {
			stored := network(t, tc.kind, tc.before)
			if err := c.Create(ctx, stored); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(ctx), stored) })
			changed := stored.DeepCopy()
			changed.Object["spec"] = network(t, tc.kind, tc.after).Object["spec"]
			err := c.Update(ctx, changed, client.DryRunAll)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
