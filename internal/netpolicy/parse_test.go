package netpolicy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text string) (Policy, error) {
	t.Helper()
	var spec networkingv1.NetworkPolicySpec
	if err := yaml.UnmarshalStrict([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	return Parse(Key{Plain, "shop", "p"}, nil, spec)
}

func TestDirections(t *testing.T) {
	cases := map[string]struct {
		spec            string
		ingress, egress bool
	}{
		"nothing said":        {"podSelector: {}", true, false},
		"rules say egress":    {"podSelector: {}\negress: [{}]", true, true},
		"ingress":             {"podSelector: {}\npolicyTypes: [Ingress]\negress: [{}]", true, false},
		"egress":              {"podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]", false, true},
		"both":                {"podSelector: {}\npolicyTypes: [Egress, Ingress]", true, true},
		"empty list as unset": {"podSelector: {}\npolicyTypes: []\negress: [{}]", true, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := parse(t, c.spec)
			if err != nil || p.Isolates != [2]bool{Ingress: c.ingress, Egress: c.egress} {
				t.Errorf("%v, error %v", p.Isolates, err)
			}
		})
	}
}

// TestBadRules: what cannot be read allows nothing, and is named.
func TestBadRules(t *testing.T) {
	cases := map[string]struct{ rule, want string }{
		"no CIDR":             {"from: [{ipBlock: {cidr: 10.0.0.0}}]", `ingress[0].from[0].ipBlock: "10.0.0.0" is not a CIDR such as 10.0.0.0/8 or fd00::/8`},
		"mapped address":      {"from: [{ipBlock: {cidr: '::ffff:10.0.0.0/120'}}]", "is not a CIDR"},
		"exception outside":   {"from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]", "11.0.0.0/16 is not within 10.0.0.0/8"},
		"exception larger":    {"from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/7]}}]", "10.0.0.0/7 is not within 10.0.0.0/8"},
		"empty peer":          {"from: [{}]", "ingress[0].from[0]: give ipBlock, podSelector or namespaceSelector"},
		"block and selector":  {"from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]", "give either ipBlock or selectors"},
		"bad selector":        {"from: [{podSelector: {matchExpressions: [{key: a, operator: Like}]}}]", `ingress[0].from[0].podSelector: "Like" is not a valid label selector operator`},
		"protocol":            {"ports: [{protocol: ICMP}]", `ingress[0].ports[0]: protocol "ICMP" is none of TCP, UDP and SCTP`},
		"port 0":              {"ports: [{port: 0}]", "ports 0 to 0 are not a range within 1 to 65535"},
		"range backwards":     {"ports: [{port: 90, endPort: 80}]", "ports 90 to 80 are not a range"},
		"range without start": {"ports: [{endPort: 80}]", "endPort needs port"},
		"range of a name":     {"ports: [{port: http, endPort: 80}]", "endPort needs a numeric port"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, err := parse(t, "podSelector: {}\ningress: [{"+c.rule+"}]")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			for _, rule := range p.Rules[Ingress] {
				if rule.Anyone || len(rule.Peers) > 0 && !strings.Contains(c.rule, "operator") {
					t.Errorf("allows %+v", rule)
				}
			}
		})
	}
}

func TestPorts(t *testing.T) {
	p, err := parse(t, "podSelector: {}\ningress: [{ports: [{port: 80}, {protocol: UDP}, {port: 100, endPort: 200, protocol: SCTP}, {port: http}]}]")
	want := []Ports{
		{Range: Range{Protocol: "tcp", First: 80, Last: 80}}, {Range: Range{Protocol: "udp"}},
		{Range: Range{Protocol: "sctp", First: 100, Last: 200}}, {Name: "http", Range: Range{Protocol: "tcp"}},
	}
	if diff := cmp.Diff(want, p.Rules[Ingress][0].Ports); diff != "" || err != nil {
		t.Error(err, diff)
	}
}
