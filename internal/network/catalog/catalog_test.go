package catalog

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/netconf"
	"patchbay/internal/settings"
)

func nad(key, network, fields string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":%q,"netAttachDefName":%q,%s}`, network, key, fields)
}

const (
	bare    = `"topology":"layer2"`
	other   = `"topology":"layer2","mtu":1300`
	primary = `"topology":"layer2","role":"primary","subnets":"10.20.0.0/16,fd00:20::/64"`
)

// book is a catalog whose networks are in use by hand.
type book struct {
	*Catalog
	t    *testing.T
	used map[string]bool
}

func newBook(t *testing.T) *book {
	b := &book{t: t, used: map[string]bool{}}
	b.Catalog = New(settings.Default(), func(name string) bool { return b.used[name] })
	return b
}

func (b *book) put(key, network, fields string, id int, wantChanged, wantErr string) {
	b.t.Helper()
	b.putMade("", key, network, fields, id, wantChanged, wantErr)
}

// putMade puts a definition that the object of a network made.
func (b *book) putMade(made, key, network, fields string, id int, wantChanged, wantErr string) {
	b.t.Helper()
	changed, _ := b.Put(key, nad(key, network, fields), id, made)
	d, _ := b.Definition(key)
	if got := strings.Join(changed, " "); got != wantChanged {
		b.t.Errorf("%s changed %q, want %q", key, got, wantChanged)
	}
	if wantErr == "" && d.Err != nil || wantErr != "" && (d.Err == nil || !strings.Contains(d.Err.Error(), wantErr)) {
		b.t.Errorf("%s has error %v, want %q", key, d.Err, wantErr)
	}
}

func TestNetworksAreShared(t *testing.T) {
	b := newBook(t)
	b.put("red/one", "shared", bare, 0, "shared", "")
	b.put("red/one", "shared", bare, 0, "", "")
	b.put("blue/two", "shared", bare, 0, "shared", "")
	b.put("red/three", "shared", other, 0, "", "NAD red/three CNI config does not match that of network shared")
	// One of two says something else now.
	b.put("blue/two", "shared", other, 0, "shared", "NAD blue/two CNI config does not match that of network shared")
	// The only one that is left may.
	b.put("red/one", "shared", other, 0, "shared", "")
	b.put("red/three", "shared", other, 0, "shared", "")
	b.used["shared"] = true
	changed, again := b.Remove("red/one")
	if diff := cmp.Diff([]string{"shared"}, changed); diff != "" || len(again) != 1 || again[0] != "blue/two" {
		t.Errorf("changed %v, again %v", changed, again)
	}
	b.put("red/three", "shared", bare, 0, "shared", "in use and cannot change")
	if b.Drop("shared") || !b.Ownerless("shared") {
		t.Error("a network that is in use went")
	}
	b.put("red/three", "shared", other, 0, "shared", "")
	b.Remove("red/three")
	b.used["shared"] = false
	if !b.Drop("shared") || b.Drop("shared") || len(b.Names()) > 0 {
		t.Error("a network that nobody is on did not go")
	}
	b.put("red/three", "first", bare, 0, "first", "")
	b.put("red/three", "second", bare, 0, "first second", "")
}

func TestNumbers(t *testing.T) {
	b := newBook(t)
	b.put("a/a", "a", bare, 7, "a", "")
	b.put("a/b", "b", bare, 7, "b", "") // taken
	b.put("a/c", "c", bare, 0, "c", "")
	b.put("a/d", "d", bare, 5000, "d", "")
	want := map[string]int{"a": 7, "b": 8, "c": 9, "d": 10, "none": 0}
	for name, id := range want {
		if got := b.ID(name); got != id {
			t.Errorf("%s has number %d, want %d", name, got, id)
		}
	}
	b.Remove("a/d")
	b.Drop("d")
	b.put("a/e", "e", bare, 0, "e", "")
	if got := b.ID("e"); got != 11 {
		t.Errorf("the number of a network that is gone was given to the next: %d", got)
	}
	for i := range MaxID {
		key := fmt.Sprint("many/n", i)
		b.Put(key, nad(key, fmt.Sprint("n", i), bare), 0, "")
	}
	d, _ := b.Definition(fmt.Sprint("many/n", MaxID-1))
	if !errors.Is(d.Err, ErrIDsTaken) || len(b.Names()) != MaxID {
		t.Errorf("%d networks, and then error %v", len(b.Names()), d.Err)
	}
}

func TestPrimary(t *testing.T) {
	b := newBook(t)
	if _, _, err := b.Primary("red"); !errors.Is(err, ErrNoPrimary) {
		t.Errorf("got error %v", err)
	}
	b.put("red/bare", "bare", bare, 0, "bare", "")
	b.putMade("cluster_udn_net", "red/net", "cluster_udn_net", primary, 0, "cluster_udn_net", "")
	b.putMade("cluster_udn_net", "pink/net", "cluster_udn_net", primary, 0, "cluster_udn_net", "")
	if key, n, err := b.Primary("red"); err != nil || key != "red/net" || n.Name != "cluster_udn_net" {
		t.Errorf("got %s, %v, %v", key, n, err)
	}
	n, _ := b.Network("cluster_udn_net")
	if got := fmt.Sprint(n.Gateways, n.Namespaces, n.MTU); got != "[10.20.0.1 fd00:20::1] [pink red] 1400" {
		t.Errorf("the network is %s", got)
	}
	b.put("red/second", "red_second", primary, 0, "red_second", "")
	if _, _, err := b.Primary("red"); err == nil || !strings.Contains(err.Error(), "has several primary networks (red/net, red/second)") {
		t.Errorf("got error %v", err)
	}
	b.Remove("red/net")
	b.Remove("red/second")
	if _, _, err := b.Primary("red"); !errors.Is(err, ErrNoPrimary) {
		t.Errorf("got error %v", err)
	}
}

func TestWhatCannotBeUsed(t *testing.T) {
	b := newBook(t)
	b.put("red/odd", "odd", `"topology":"ring"`, 0, "", "is not known")
	b.put("red/cluster", "cluster", `"topology":"layer2","subnets":"10.128.0.0/16"`, 0, "", "overlaps cluster subnet")
	b.Put("red/bridge", `{"type":"bridge"}`, 0, "")
	if d, _ := b.Definition("red/bridge"); !errors.Is(d.Err, netconf.ErrOther) {
		t.Errorf("got error %v", d.Err)
	}
	b.Put("system/default", `{"type":"ovn-k8s-cni-overlay","name":"ovn-kubernetes"}`, 0, "")
	if d, _ := b.Definition("system/default"); d.Err != nil || !d.Network.IsDefault() {
		t.Errorf("got %+v", d)
	}
	if len(b.Names()) > 0 {
		t.Errorf("there are networks %v", b.Names())
	}
	b.put("red/vlan", "vlan", `"topology":"localnet"`, 0, "vlan", "")
	if n, _ := b.Network("vlan"); n.MTU != 1500 || n.Physical != "vlan" {
		t.Errorf("the network is %+v", n)
	}
}

func TestInfrastructure(t *testing.T) {
	cases := map[string]struct{ fields, gateways, management string }{
		"first":          {``, "[10.20.0.1 fd00:20::1]", "[10.20.0.2 fd00:20::2]"},
		"second":         {`"defaultGatewayIPs":"10.20.0.2,fd00:20::2",`, "[10.20.0.2 fd00:20::2]", "[10.20.0.1 fd00:20::1]"},
		"infrastructure": {`"infrastructureSubnets":"10.20.5.0/30,fd00:20::1:0/126",`, "[10.20.5.1 fd00:20::1:1]", "[10.20.5.2 fd00:20::1:2]"},
		"too small":      {`"infrastructureSubnets":"10.20.5.4/32,fd00:20::1:0/126",`, "[10.20.5.4 fd00:20::1:1]", "[10.20.0.1 fd00:20::1:2]"},
		"both": {
			`"infrastructureSubnets":"10.20.5.0/30,fd00:20::1:0/126","defaultGatewayIPs":"10.20.5.2,fd00:20::1:1",`,
			"[10.20.5.2 fd00:20::1:1]", "[10.20.5.1 fd00:20::1:2]",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n, err := netconf.Parse("red/net", nad("red/net", "net", c.fields+primary))
			if err != nil {
				t.Fatal(err)
			}
			gateways, management := n.Kept()
			if fmt.Sprint(gateways) != c.gateways || fmt.Sprint(management) != c.management {
				t.Errorf("got %v and %v, want %s and %s", gateways, management, c.gateways, c.management)
			}
			space := NewSpace(n)
			for _, own := range [][]netip.Addr{gateways, management} {
				if err := space.Pin("thief", own); err == nil {
					t.Errorf("%v were given away", own)
				}
			}
		})
	}
}
