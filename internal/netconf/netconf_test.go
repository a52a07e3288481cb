package netconf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

var comparable = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// nad completes a configuration of the definition red/blue.
func nad(fields string) string {
	return `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"blue","netAttachDefName":"red/blue",` + fields + `}`
}

func TestParse(t *testing.T) {
	cases := map[string]struct {
		config string
		want   Network
	}{
		"layer2 without addresses": {
			nad(`"topology":"layer2"`), Network{Name: "blue", Topology: Layer2, Role: podnetworks.Secondary},
		},
		"layer2 with addresses": {
			nad(`"topology":"layer2","subnets":"10.100.200.0/24","excludeSubnets":"10.100.200.1/32, 10.100.200.9","mtu":1300,"allowPersistentIPs":true`),
			Network{
				Name: "blue", Topology: Layer2, Role: podnetworks.Secondary, MTU: 1300, Persistent: true,
				Subnets: []Subnet{{CIDR: netip.MustParsePrefix("10.100.200.0/24")}}, Excluded: prefixes("10.100.200.1/32", "10.100.200.9/32"),
			},
		},
		"host bits of a subnet do not matter": {
			nad(`"topology":"layer2","subnets":"10.100.200.7/24"`),
			Network{Name: "blue", Topology: Layer2, Role: podnetworks.Secondary, Subnets: []Subnet{{CIDR: netip.MustParsePrefix("10.100.200.0/24")}}},
		},
		"primary": {
			nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64","joinSubnet":"100.65.0.0/16,fd99::/64","transitSubnet":"100.88.0.0/16,fd97::/64",` +
				`"reservedSubnets":"10.20.1.0/24","infrastructureSubnets":"10.20.0.0/30,fd00:20::/120","defaultGatewayIPs":"fd00:20::9,10.20.0.2"`),
			Network{
				Name: "blue", Topology: Layer2, Role: podnetworks.Primary,
				Subnets: []Subnet{{CIDR: netip.MustParsePrefix("10.20.0.0/16")}, {CIDR: netip.MustParsePrefix("fd00:20::/64")}},
				Join:    prefixes("100.65.0.0/16", "fd99::/64"), Transit: prefixes("100.88.0.0/16", "fd97::/64"),
				Reserved: prefixes("10.20.1.0/24"), Infrastructure: prefixes("10.20.0.0/30", "fd00:20::/120"),
				Gateways: []netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("fd00:20::9")},
			},
		},
		"primary has a join subnet": {
			nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16"`),
			Network{
				Name: "blue", Topology: Layer2, Role: podnetworks.Primary,
				Subnets: []Subnet{{CIDR: netip.MustParsePrefix("10.20.0.0/16")}}, Join: prefixes("100.65.0.0/16", "fd99::/64"),
			},
		},
		"layer3": {
			nad(`"topology":"layer3","role":"secondary","subnets":"10.20.0.0/16/26,10.30.0.0/16,fd00:20::/56"`),
			Network{
				Name: "blue", Topology: Layer3, Role: podnetworks.Secondary,
				Subnets: []Subnet{{netip.MustParsePrefix("10.20.0.0/16"), 26}, {netip.MustParsePrefix("10.30.0.0/16"), 24}, {netip.MustParsePrefix("fd00:20::/56"), 64}},
			},
		},
		"localnet": {
			nad(`"topology":"localnet","vlanID":200,"physicalNetworkName":"tenantblue"`),
			Network{Name: "blue", Topology: Localnet, Role: podnetworks.Secondary, VLAN: 200, Physical: "tenantblue"},
		},
		"localnet by its own name": {
			nad(`"topology":"localnet"`), Network{Name: "blue", Topology: Localnet, Role: podnetworks.Secondary, Physical: "blue"},
		},
		"list of one": {
			`{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"ovn-k8s-cni-overlay","netAttachDefName":"red/blue","topology":"layer2"}]}`,
			Network{Name: "blue", Topology: Layer2, Role: podnetworks.Secondary},
		},
		"empty ipam": {
			nad(`"topology":"layer2","ipam":{}`), Network{Name: "blue", Topology: Layer2, Role: podnetworks.Secondary},
		},
		"the default network": {`{"cniVersion":"1.0.0","name":"ovn-kubernetes","type":"ovn-k8s-cni-overlay"}`, Network{Name: "default"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Parse("red/blue", c.config)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, comparable); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got.IsDefault() != (name == "the default network") {
				t.Errorf("IsDefault is %v", got.IsDefault())
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	l2, primary := `"topology":"layer2",`, `"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64",`
	cases := map[string]struct{ config, want string }{
		"not JSON":           {`{"type":`, "spec.config is not a CNI configuration in JSON"},
		"wrong type":         {nad(`"topology":"layer2","mtu":"1400"`), "spec.config is not a CNI configuration in JSON"},
		"chained":            {`{"name":"blue","plugins":[{"type":"ovn-k8s-cni-overlay"},{"type":"tuning"}]}`, "cannot be chained"},
		"other definition":   {`{"type":"ovn-k8s-cni-overlay","name":"blue","topology":"layer2","netAttachDefName":"red/green"}`, "net-attach-def name (red/blue) is inconsistent with config (red/green)"},
		"no definition":      {`{"type":"ovn-k8s-cni-overlay","name":"blue","topology":"layer2"}`, "net-attach-def name (red/blue) is inconsistent with config ()"},
		"no name":            {`{"type":"ovn-k8s-cni-overlay","topology":"layer2","netAttachDefName":"red/blue"}`, `name "" is not a network's name`},
		"reserved name":      {`{"type":"ovn-k8s-cni-overlay","name":"ovn-kubernetes","topology":"layer2","netAttachDefName":"red/blue"}`, "is reserved for the cluster's default network"},
		"odd name":           {`{"type":"ovn-k8s-cni-overlay","name":"a\"b","topology":"layer2","netAttachDefName":"red/blue"}`, "is not a network's name"},
		"ipam":               {nad(l2 + `"ipam":{"type":"whereabouts"}`), "IPAM key is not supported. Use OVN-K provided IPAM via the `subnets` attribute"},
		"ipam of no type":    {nad(l2 + `"ipam":{"subnet":"10.1.0.0/24"}`), "IPAM key is not supported"},
		"version":            {strings.Replace(nad(l2+`"mtu":1400`), "1.0.0", "3.0.1", 1), `cniVersion "3.0.1" is not known; write 0.3.1 or one of 0.1.0, 0.2.0`},
		"topology":           {nad(`"topology":"Layer2"`), `topology "Layer2" is not known`},
		"role":               {nad(l2 + `"role":"Primary"`), `role "Primary" is not known`},
		"localnet primary":   {nad(`"topology":"localnet","role":"primary","subnets":"10.0.0.0/16"`), "localnet topology cannot be primary"},
		"layer3 persistent":  {nad(`"topology":"layer3","subnets":"10.0.0.0/16","allowPersistentIPs":true`), "layer3 topology does not allow persistent IPs"},
		"persistent nothing": {nad(l2 + `"allowPersistentIPs":true`), "allowPersistentIPs needs subnets"},
		"localnet join":      {nad(`"topology":"localnet","joinSubnet":"100.70.0.0/16"`), "localnet topology does not allow specifying join-subnet"},
		"secondary join":     {nad(l2 + `"joinSubnet":"100.70.0.0/16"`), "joinSubnet is only supported for primary networks"},
		"primary no subnets": {nad(l2 + `"role":"primary"`), "a primary network with topology layer2 needs subnets"},
		"layer3 no subnets":  {nad(`"topology":"layer3"`), "a secondary network with topology layer3 needs subnets"},
		"secondary gateway":  {nad(l2 + `"subnets":"10.0.0.0/16","defaultGatewayIPs":"10.0.0.9"`), "only supported for primary layer2 networks"},
		"bad subnet":         {nad(l2 + `"subnets":"10.0.0.0"`), `subnets: "10.0.0.0" is not a range`},
		"trailing comma":     {nad(l2 + `"subnets":"10.0.0.0/16,"`), `subnets: "" is not a range`},
		"mapped":             {nad(l2 + `"subnets":"::ffff:10.0.0.0/112"`), "is not a range"},
		"tiny":               {nad(l2 + `"subnets":"10.0.0.0/31"`), "10.0.0.0/31 is too small"},
		"two of a family":    {nad(l2 + `"subnets":"10.0.0.0/16,10.1.0.0/16"`), "are of the same IP family"},
		"own overlap":        {nad(l2 + `"subnets":"10.0.0.0/16,10.0.1.0/24"`), `subnet "10.0.0.0/16" overlaps subnet "10.0.1.0/24"`},
		"small mtu":          {nad(l2 + `"mtu":575`), "mtu 575 must lie between 576 and 65536"},
		"small mtu with v6":  {nad(l2 + `"mtu":1279,"subnets":"fd00::/64"`), "mtu 1279 must lie between 1280 and 65536"},
		"excluded nothing":   {nad(l2 + `"excludeSubnets":"10.0.0.1"`), "excludeSubnets must be unset when subnets is unset"},
		"excluded outside":   {nad(l2 + `"subnets":"10.0.0.0/16","excludeSubnets":"10.1.0.1"`), "excludeSubnets must be subnetworks"},
		"excluded host bits": {nad(l2 + `"subnets":"10.0.0.0/16","excludeSubnets":"10.0.0.1/24"`), "write 10.0.0.0/24 for 10.0.0.1/24"},
		"reserved overlap":   {nad(primary + `"reservedSubnets":"10.20.1.0/24","infrastructureSubnets":"10.20.1.0/30"`), "infrastructureSubnets and reservedSubnets must not overlap"},
		"reserved outside":   {nad(primary + `"reservedSubnets":"10.21.1.0/24"`), "reservedSubnets must be subnetworks"},
		"one gateway":        {nad(primary + `"defaultGatewayIPs":"10.20.0.9"`), "defaultGatewayIPs must be specified for all IP families"},
		"gateway outside":    {nad(primary + `"defaultGatewayIPs":"10.21.0.9,fd00:20::9"`), "defaultGatewayIPs must belong to one of the subnets"},
		"gateway broadcast":  {nad(primary + `"defaultGatewayIPs":"10.20.255.255,fd00:20::9"`), "defaultGatewayIPs must belong to one of the subnets"},
		"gateways v4 twice":  {nad(primary + `"defaultGatewayIPs":"10.20.0.8,10.20.0.9"`), "defaultGatewayIPs must belong to one of the subnets"},
		"gateway not infra":  {nad(primary + `"infrastructureSubnets":"10.20.0.0/30,fd00:20::/120","defaultGatewayIPs":"10.20.0.9,fd00:20::9"`), "defaultGatewayIPs have to belong to infrastructureSubnets: 10.20.0.9 does not"},
		"gateway text":       {nad(primary + `"defaultGatewayIPs":"gw"`), `defaultGatewayIPs: "gw" is not an IP address`},
		"slice too short":    {nad(`"topology":"layer3","subnets":"10.0.0.0/16/16"`), "a node's slice of 10.0.0.0/16 cannot be a /16"},
		"slice too long":     {nad(`"topology":"layer3","subnets":"10.0.0.0/16/31"`), "a node's slice of 10.0.0.0/16 cannot be a /31"},
		"slice text":         {nad(`"topology":"layer3","subnets":"10.0.0.0/16/x"`), `host prefix length "x"`},
		"vlan on layer2":     {nad(l2 + `"vlanID":5`), "vlanID is only supported for localnet topology"},
		"vlan range":         {nad(`"topology":"localnet","vlanID":4095`), "vlanID 4095 must lie between 1 and 4094"},
		"physical on layer2": {nad(l2 + `"physicalNetworkName":"x"`), "physicalNetworkName is only supported for localnet"},
		"physical text":      {nad(`"topology":"localnet","physicalNetworkName":"a:b"`), "physicalNetworkName cannot contain `,` or `:` characters"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("red/blue", c.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

func TestOtherPluginsAreNotOurs(t *testing.T) {
	for _, text := range []string{
		`{"type":"bridge","name":"x","ipam":{"type":"host-local"}}`, `{"plugins":[{"type":"bridge"},{"type":"tuning"}]}`, `{}`, `{"plugins":[]}`, `{"plugins":[{"type":"macvlan"}]}`,
	} {
		if _, err := Parse("red/blue", text); !errors.Is(err, ErrOther) {
			t.Errorf("%s: got error %v, want ErrOther", text, err)
		}
	}
}

func TestCheckCluster(t *testing.T) {
	cases := map[string]struct{ config, want string }{
		"fits":                 {nad(`"topology":"layer2","subnets":"10.20.0.0/16,fd00:20::/64"`), ""},
		"like another tenant":  {nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64"`), ""},
		"cluster":              {nad(`"topology":"layer2","subnets":"10.128.4.0/24"`), `subnet "10.128.4.0/24" overlaps cluster subnet "10.128.0.0/14"`},
		"cluster, excluded":    {nad(`"topology":"layer2","subnets":"10.0.0.0/8","excludeSubnets":"10.128.0.0/14,10.96.0.0/16"`), ""},
		"cluster, partly":      {nad(`"topology":"layer2","subnets":"10.0.0.0/8","excludeSubnets":"10.128.0.0/15,10.96.0.0/16"`), `subnet "10.0.0.0/8" overlaps cluster subnet "10.128.0.0/14"`},
		"service":              {nad(`"topology":"localnet","subnets":"fd00:10:96::/64"`), `subnet "fd00:10:96::/64" overlaps service subnet "fd00:10:96::/112"`},
		"cluster entry":        {nad(`"topology":"layer2","role":"primary","subnets":"100.65.4.0/24","joinSubnet":"100.70.0.0/16"`), `subnet "100.65.4.0/24" overlaps cluster entry subnet "100.65.0.0/16"`},
		"cluster join":         {nad(`"topology":"layer2","role":"primary","subnets":"100.64.0.0/16"`), `subnet "100.64.0.0/16" overlaps cluster join subnet "100.64.0.0/16"`},
		"masquerade":           {nad(`"topology":"layer2","subnets":"169.254.0.0/16"`), `subnet "169.254.0.0/16" overlaps masquerade subnet "169.254.0.0/17"`},
		"join of its own":      {nad(`"topology":"layer2","role":"primary","subnets":"100.65.0.0/16"`), "subnet \"100.65.0.0/16\" overlaps join subnet \"100.65.0.0/16\"\nsubnet \"100.65.0.0/16\" overlaps cluster entry subnet \"100.65.0.0/16\""},
		"other join":           {nad(`"topology":"layer2","role":"primary","subnets":"100.66.0.0/16","joinSubnet":"100.70.0.0/16"`), ""},
		"entry, secondary":     {nad(`"topology":"layer2","subnets":"100.65.0.0/16"`), ""},
		"join on the cluster":  {nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16","joinSubnet":"10.129.0.0/16"`), `join subnet "10.129.0.0/16" overlaps cluster subnet "10.128.0.0/14"`},
		"transit on the join":  {nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16","transitSubnet":"100.65.0.0/24"`), `join subnet "100.65.0.0/16" overlaps transit subnet "100.65.0.0/24"`},
		"mtu":                  {nad(`"topology":"layer2","mtu":1401`), "mtu 1401 is too large for the nodes' network of MTU 1500; choose 1400 or less"},
		"mtu outside overlays": {nad(`"topology":"localnet","mtu":9000`), ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n, err := Parse("red/blue", c.config)
			if err != nil {
				t.Fatal(err)
			}
			err = n.CheckCluster(settings.Default())
			if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

func TestNetworksSharedByName(t *testing.T) {
	one, err := Parse("red/blue", nad(`"topology":"layer2","subnets":"10.20.0.0/16"`))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]bool{
		`"topology":"layer2","subnets":"10.20.0.0/16"`:                    true,
		`"topology":"layer2","role":"secondary","subnets":"10.20.0.0/16"`: true,
		`"topology":"layer2","subnets":"10.20.0.0/17"`:                    false,
		`"topology":"layer2","subnets":"10.20.0.0/16","mtu":1300`:         false,
	}
	for fields, want := range cases {
		text := strings.Replace(nad(fields), "red/blue", "green/sky", 1)
		other, err := Parse("green/sky", text)
		if err != nil {
			t.Fatal(err)
		}
		if one.Equal(other) != want {
			t.Errorf("%s: equal is %v, want %v", fields, !want, want)
		}
	}
	if got := Mismatch("green/sky", "blue").Error(); got != "NAD green/sky CNI config does not match that of network blue" {
		t.Error(got)
	}
}

// FuzzParse wants an answer to every text, and of every network that is accepted what the rest of the program relies on.
func FuzzParse(f *testing.F) {
	f.Add(nad(`"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64","defaultGatewayIPs":"10.20.0.2,fd00:20::9"`))
	f.Add(nad(`"topology":"layer3","subnets":"10.20.0.0/16/26,fd00:20::/56"`))
	f.Add(nad(`"topology":"localnet","vlanID":200,"subnets":"0.0.0.0/0","excludeSubnets":"1.2.3.4"`))
	f.Add(`{"plugins":[null]}`)
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse("red/blue", text)
		if err != nil || n.IsDefault() {
			return
		}
		_ = n.CheckCluster(settings.Default())
		if n.Name == "" || n.Role == "" || !n.Equal(n) {
			t.Errorf("accepted %+v", n)
		}
		for i, s := range n.Subnets {
			if s.CIDR != s.CIDR.Masked() || (n.Topology == Layer3) != (s.HostBits > s.CIDR.Bits()) {
				t.Errorf("accepted subnet %+v", s)
			}
			if len(n.Gateways) > 0 && !s.CIDR.Contains(n.Gateways[i]) {
				t.Errorf("accepted gateway %s of subnet %s", n.Gateways[i], s.CIDR)
			}
		}
	})
}

func TestExtends(t *testing.T) {
	parse := func(fields string) Network {
		n, err := Parse("red/blue", nad(`"topology":"layer3","role":"primary",`+fields))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	small := parse(`"subnets":"10.30.0.0/16/24"`)
	cases := map[string]struct {
		fields string
		want   bool
	}{
		"a further range":  {`"subnets":"10.30.0.0/16/24,10.31.0.0/16/24"`, true},
		"the same":         {`"subnets":"10.30.0.0/16/24"`, false},
		"another range":    {`"subnets":"10.31.0.0/16/24,10.32.0.0/16/24"`, false},
		"other slices":     {`"subnets":"10.30.0.0/16/25,10.31.0.0/16/24"`, false},
		"a further family": {`"subnets":"10.30.0.0/16/24,fd00:30::/48"`, false},
		"another MTU, too": {`"subnets":"10.30.0.0/16/24,10.31.0.0/16/24","mtu":1300`, false},
		"in another order": {`"subnets":"10.31.0.0/16/24,10.30.0.0/16/24"`, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := parse(c.fields).Extends(small); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
