package policy

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"patchbay/internal/golden"
	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
)

// recorder keeps what all owners want, and the owners of the last change.
type recorder struct {
	owners map[string][]nb.Row
	last   []string
}

func (r *recorder) SetAll(rows map[string][]nb.Row) {
	r.last = slices.Sorted(maps.Keys(rows))
	for owner, wanted := range rows {
		r.owners[owner] = wanted
		if len(wanted) == 0 {
			delete(r.owners, owner)
		}
	}
}

func (r *recorder) dump() string {
	var all []nb.Row
	for _, owner := range slices.Sorted(maps.Keys(r.owners)) {
		all = append(all, r.owners[owner]...)
	}
	return nb.Dump(all)
}

type bench struct {
	*Enforcer
	*recorder
	t *testing.T
}

func newBench(t *testing.T) *bench {
	r := &recorder{owners: map[string][]nb.Row{}}
	b := &bench{recorder: r, t: t, Enforcer: New(r, []netip.Addr{netip.MustParseAddr("172.30.0.1")})}
	b.SetNetwork(Network{Services: true, Addresses: true})
	b.SetNetwork(Network{Name: "red_net", Services: true, Addresses: true, Nodes: []netip.Addr{netip.MustParseAddr("10.20.0.2")}})
	b.SetNetwork(Network{Name: "blue", Addresses: true})
	b.SetNetwork(Network{Name: "bare"})
	for _, ns := range []string{"shop", "office", "kube-system"} {
		b.SetNamespace(ns, labels.Set{"kubernetes.io/metadata.name": ns})
	}
	return b
}

func (b *bench) policy(kind, namespace, name string, networks []string, text string) {
	b.t.Helper()
	var spec networkingv1.NetworkPolicySpec
	if err := yaml.UnmarshalStrict([]byte(text), &spec); err != nil {
		b.t.Fatal(err)
	}
	p, err := netpolicy.Parse(netpolicy.Key{Kind: kind, Namespace: namespace, Name: name}, networks, spec)
	if err != nil {
		b.t.Fatal(err)
	}
	b.SetPolicy(p)
}

func port(namespace, name, network string, set labels.Set, named ...NamedPort) Port {
	return Port{Name: namespace + "_" + name, Network: network, Primary: network == "" || network == "red_net", Namespace: namespace, Labels: set, Named: named}
}

// changed asserts who wants something else since the last change.
func (b *bench) changed(want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.last); diff != "" {
		b.t.Errorf("owners that changed (-want +got):\n%s", diff)
	}
	b.last = nil
}

const webFromShop = `
podSelector: {matchLabels: {app: web}}
ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]`

func TestRows(t *testing.T) {
	web, http := labels.Set{"app": "web"}, NamedPort{"http", "tcp", 8080}
	cases := map[string]func(*bench){
		"plain policy on the default network": func(b *bench) {
			b.policy(netpolicy.Plain, "shop", "web", nil, webFromShop)
			b.SetPorts("pod/web", []Port{port("shop", "web", "", web)})
			b.SetPorts("pod/client", []Port{port("shop", "client", "", nil)})
			b.SetPorts("pod/other", []Port{port("office", "other", "", nil)})
		},
		"plain policy on a tenant network": func(b *bench) {
			b.policy(netpolicy.Plain, "shop", "web", nil, webFromShop)
			b.SetPorts("vm/web", []Port{port("shop", "web", "red_net", web), port("shop", "web-2", "blue", web)})
		},
		"selectors of namespaces": func(b *bench) {
			b.policy(netpolicy.Plain, "shop", "web", nil, `
podSelector: {}
ingress:
- from: [{namespaceSelector: {matchLabels: {team: a}}}]
- from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]`)
			b.SetPorts("pod/web", []Port{port("shop", "web", "", web)})
			b.SetPorts("pod/other", []Port{port("office", "other", "", nil)})
			b.SetNamespace("office", labels.Set{"team": "a"})
		},
		"names of ports": func(b *bench) {
			b.policy(netpolicy.Plain, "shop", "in", nil, "podSelector: {}\ningress: [{ports: [{port: http}, {port: 22}]}]")
			b.policy(netpolicy.Plain, "shop", "out", nil, "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: http}]}]")
			b.SetPorts("pod/web", []Port{port("shop", "web", "", web, http)})
			b.SetPorts("pod/web-2", []Port{port("shop", "web-2", "", web, NamedPort{"http", "tcp", 80})})
			b.SetPorts("pod/none", []Port{port("shop", "none", "", web, NamedPort{"http", "udp", 80})})
		},
		"DNS": func(b *bench) {
			b.policy(netpolicy.Plain, "shop", "dns", nil, `
podSelector: {}
policyTypes: [Egress]
egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: dns-tcp}]}]`)
			b.SetPorts("pod/web", []Port{port("shop", "web", "red_net", nil)})
		},
		"multi policy": func(b *bench) {
			b.policy(netpolicy.Multi, "shop", "web", []string{"blue", "bare"}, `
podSelector: {}
policyTypes: [Ingress, Egress]
ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]
egress: [{to: [{namespaceSelector: {}}]}]`)
			b.SetPorts("pod/web", []Port{port("shop", "web", "", web), port("shop", "web-1", "blue", web), port("shop", "web-2", "bare", web)})
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c(b)
			golden.Check(t, "txt", b.dump())
		})
	}
}

// TestOnlyWhatChanges: a port that comes, changes or goes costs its own memberships and no rule.
func TestOnlyWhatChanges(t *testing.T) {
	b := newBench(t)
	web := labels.Set{"app": "web"}
	b.policy(netpolicy.Plain, "shop", "web", nil, webFromShop)
	b.SetPorts("pod/web", []Port{port("shop", "web", "", web)})
	b.last = nil
	b.SetPorts("pod/client", []Port{port("shop", "client", "", nil)})
	b.changed("policy-port/shop_client")
	b.SetPorts("pod/client", []Port{port("shop", "client", "", labels.Set{"unimportant": "x"})})
	b.changed()
	b.SetPorts("pod/client", []Port{port("shop", "client", "", web)})
	b.changed("policy-port/shop_client")
	b.SetPorts("pod/other", []Port{port("office", "other", "", web)})
	b.changed()
	b.SetPorts("pod/client", nil)
	b.changed("policy-port/shop_client")
	b.policy(netpolicy.Plain, "shop", "web", nil, webFromShop)
	b.changed()
	b.policy(netpolicy.Plain, "office", "none", nil, "podSelector: {matchLabels: {app: none}}")
	b.SetNamespace("office", labels.Set{"team": "b"})
	b.last = nil
	b.SetNamespace("office", labels.Set{"team": "a"})
	b.changed()
}

// TestNothingIsLeft: when ports and policies are gone, so is everything that they brought.
func TestNothingIsLeft(t *testing.T) {
	b := newBench(t)
	b.policy(netpolicy.Plain, "shop", "web", nil, webFromShop)
	b.policy(netpolicy.Multi, "shop", "web", []string{"blue"}, "podSelector: {}\ningress: [{ports: [{port: http}]}]")
	b.SetPorts("vm/web", []Port{port("shop", "web", "red_net", labels.Set{"app": "web"}), port("shop", "web-1", "blue", nil, NamedPort{"http", "tcp", 80})})
	if len(b.owners) < 8 {
		t.Errorf("only %v", slices.Sorted(maps.Keys(b.owners)))
	}
	b.SetPorts("vm/web", nil)
	b.RemovePolicy(netpolicy.Key{Kind: netpolicy.Multi, Namespace: "shop", Name: "web"})
	b.RemoveNetwork("blue")
	if len(b.owners) > 0 {
		t.Errorf("left: %s", b.dump())
	}
	b.RemovePolicy(netpolicy.Key{Kind: netpolicy.Plain, Namespace: "shop", Name: "web"})
	b.SetPorts("pod/late", []Port{port("shop", "late", "", labels.Set{"app": "web"})})
	if len(b.owners) > 0 || b.networks["blue"] != nil {
		t.Errorf("left: %s", b.dump())
	}
}
