package nic

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ack is a server's answer with options.
func ack(t *testing.T, options ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 5)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRoutes4(t *testing.T) {
	route := func(to string, via net.IP) *dhcpv4.Route {
		_, dest, err := net.ParseCIDR(to)
		if err != nil {
			t.Fatal(err)
		}
		return &dhcpv4.Route{Dest: dest, Router: via}
	}
	for _, c := range []struct {
		name    string
		options []dhcpv4.Modifier
		want    []string
	}{
		{"none", nil, nil},
		{"router", []dhcpv4.Modifier{dhcpv4.WithRouter(net.IPv4(10, 0, 0, 1), net.IPv4(10, 0, 0, 2))}, []string{"0.0.0.0/0 via 10.0.0.1 onlink=false"}},
		{"router elsewhere", []dhcpv4.Modifier{dhcpv4.WithRouter(net.IPv4(169, 254, 1, 1))}, []string{"0.0.0.0/0 via 169.254.1.1 onlink=true"}},
		{
			"classless routes replace the router, those on the link go first",
			[]dhcpv4.Modifier{
				dhcpv4.WithRouter(net.IPv4(10, 0, 0, 1)),
				dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(route("0.0.0.0/0", net.IPv4(10, 0, 0, 9)), route("10.9.0.0/16", net.IPv4zero))),
			},
			[]string{"10.9.0.0/16 via invalid IP onlink=false", "0.0.0.0/0 via 10.0.0.9 onlink=false"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := ack(t, c.options...)
			var got []string
			for _, r := range routes4(m, prefix4(m), 101) {
				got = append(got, fmt.Sprintf("%s via %s onlink=%v", r.To, r.Via, r.OnLink))
				if r.Metric != 101 {
					t.Errorf("route %s has metric %d, want that of the interface", r.To, r.Metric)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnswerShowsOptions(t *testing.T) {
	m := ack(t, dhcpv4.WithDNS(net.IPv4(10, 0, 0, 53), net.IPv4(10, 0, 0, 54)), dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 120}),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(240), []byte("private")), dhcpv4.WithLeaseTime(3600))
	want := map[string]string{"1": "255.255.255.0", "6": "10.0.0.53 10.0.0.54", "26": "1400", "51": "3600", "240": "private"}
	if diff := cmp.Diff(want, answer4(m, prefix4(m)).Options); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestResolverJoinsInterfaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	r := &Resolver{Path: file}
	a, b := netip.MustParseAddr("10.0.0.53"), netip.MustParseAddr("fd00::53")
	r.Set("", []netip.Addr{b}, nil)
	r.Set("eth1", []netip.Addr{a, b}, []string{"b.test"})
	r.Set("eth0", []netip.Addr{a}, []string{"a.test", "b.test"})
	for _, want := range []string{
		"search a.test b.test\nnameserver fd00::53\nnameserver 10.0.0.53\n",
		"search b.test\nnameserver fd00::53\nnameserver 10.0.0.53\n",
	} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("resolv.conf is %q (%v), want %q", got, err, want)
		}
		r.Set("eth0", nil, nil)
	}
}
