package guestnet

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	virtv1 "kubevirt.io/api/core/v1"
)

var (
	clientMAC  = net.HardwareAddr{0x02, 0, 0, 0x12, 0x34, 0x56}
	gatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
)

func config() Config {
	return Config{
		Device:   "k6t-eth0",
		MTU:      1400,
		Hostname: "web-01",
		DNS: DNS{
			Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
			Search:  []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		},
		V4: &V4{
			Server: netip.MustParseAddr("10.0.2.1"), Guest: netip.MustParsePrefix("10.0.2.2/24"), Router: netip.MustParseAddr("10.0.2.1"),
			Options: Options{
				NTP:        []netip.Addr{netip.MustParseAddr("192.0.2.1")},
				TFTPServer: "192.0.2.9", BootFile: "pxe.0",
				Private: map[uint8]string{240: "private"},
			},
		},
		V6: &V6{Guest: netip.MustParseAddr("fd10:0:2::2"), Prefix: netip.MustParsePrefix("fd10:0:2::1/120"), MAC: gatewayMAC},
	}
}

func message4(t *testing.T, kind dhcpv4.MessageType, change ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(clientMAC)}, change...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// summary is what the guest gets: a line per option, in the library's words.
func summary4(m *dhcpv4.DHCPv4) []string {
	lines := []string{"your IP " + m.YourIPAddr.String(), "next server " + m.ServerIPAddr.String()}
	for line := range strings.Lines(m.Options.Summary(nil)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

func TestEveryOptionIsAlwaysGiven(t *testing.T) {
	got := summary4(config().answer4(message4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter))))
	want := []string{
		"your IP 10.0.2.2",
		"next server 192.0.2.9",
		"Subnet Mask: ffffff00",
		"Router: 10.0.2.1",
		"Domain Name Server: 10.96.0.10",
		"Host Name: web-01",
		"Domain Name: default.svc.cluster.local",
		"Interface MTU: [5 120]", // 1400
		"NTP Servers: 192.0.2.1",
		"IP Addresses Lease Time: 23976h0m0s",
		"DHCP Message Type: OFFER",
		"Server Identifier: 10.0.2.1",
		"TFTP Server Name: 192.0.2.9",
		"Bootfile Name: pxe.0",
		"DNS Domain Search List: [default.svc.cluster.local svc.cluster.local cluster.local]",
		"unknown (240): [112 114 105 118 97 116 101]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBridgeAnswers(t *testing.T) {
	c := config()
	c.V4.Server, c.V4.Client = netip.MustParseAddr("169.254.75.10"), clientMAC
	c.V4.Routes = []Route{
		{To: netip.MustParsePrefix("10.1.0.0/16")},
		{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.2.1")},
	}
	reply := c.answer4(message4(t, dhcpv4.MessageTypeRequest))
	if got := dhcpv4.Routes(reply.ClasslessStaticRoute()).String(); got != "route to 10.1.0.0/16 via 0.0.0.0; route to 0.0.0.0/0 via 10.0.2.1" {
		t.Errorf("option 121 is %q; the default route must be last", got)
	}
	if c.answer4(message4(t, dhcpv4.MessageTypeRequest, dhcpv4.WithHwAddr(gatewayMAC))) != nil {
		t.Error("a stranger was served")
	}
}

func TestWhatDHCPv4Answers(t *testing.T) {
	for kind, want := range map[dhcpv4.MessageType]dhcpv4.MessageType{
		dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer,
		dhcpv4.MessageTypeRequest:  dhcpv4.MessageTypeAck,
		dhcpv4.MessageTypeDecline:  dhcpv4.MessageTypeNone,
		dhcpv4.MessageTypeRelease:  dhcpv4.MessageTypeNone,
		dhcpv4.MessageTypeInform:   dhcpv4.MessageTypeNone,
		dhcpv4.MessageTypeNone:     dhcpv4.MessageTypeNone,
	} {
		// a wish for another address changes nothing: there is no NAK
		reply := config().answer4(message4(t, kind, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 0, 2, 77)))))
		got := dhcpv4.MessageTypeNone
		if reply != nil {
			got = reply.MessageType()
			if !reply.YourIPAddr.Equal(net.IPv4(10, 0, 2, 2)) {
				t.Errorf("%s: the guest is given %s", kind, reply.YourIPAddr)
			}
		}
		if got != want {
			t.Errorf("%s is answered by %s, want %s", kind, got, want)
		}
	}
}

func TestDestination4(t *testing.T) {
	renewing := message4(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(10, 0, 2, 2)))
	for want, request := range map[string]*dhcpv4.DHCPv4{
		"255.255.255.255:68": message4(t, dhcpv4.MessageTypeDiscover),
		"10.0.2.2:68":        renewing,
	} {
		if got := destination4(request).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for want, options := range map[string]virtv1.DHCPOptions{
		`"ntp.example.com" is not an IPv4 address`:              {NTPServers: []string{"ntp.example.com"}},
		`"fd00::1" is not an IPv4 address`:                      {NTPServers: []string{"fd00::1"}},
		"option 223 is not private; use 224-254":                {PrivateOptions: []virtv1.DHCPPrivateOptions{{Option: 223}}},
		"the value of option 224 has 256 bytes; 255 fit":        {PrivateOptions: []virtv1.DHCPPrivateOptions{{Option: 224, Value: strings.Repeat("x", 256)}}},
		"dhcpOptions.privateOptions: option 255 is not private": {PrivateOptions: []virtv1.DHCPPrivateOptions{{Option: 255}}},
	} {
		if _, err := NewOptions(&options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	long := config()
	long.DNS.Search = []string{strings.Repeat("x.", 100) + "example", strings.Repeat("y.", 100) + "example"}
	if err := long.Validate(); err == nil || !strings.Contains(err.Error(), "only 255 fit") {
		t.Errorf("a long search list: %v", err)
	}
}

func message6(t *testing.T, kind dhcpv6.MessageType, change ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewMessage(append([]dhcpv6.Modifier{
		dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: clientMAC}), dhcpv6.WithIAID([4]byte{1, 2, 3, 4}),
	}, change...)...)
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	return m
}

func TestWhatDHCPv6Answers(t *testing.T) {
	foreign := dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: clientMAC})
	cases := []struct {
		name    string
		request *dhcpv6.Message
		want    dhcpv6.MessageType // 0: no answer
		address bool
	}{
		{"solicit", message6(t, dhcpv6.MessageTypeSolicit), dhcpv6.MessageTypeAdvertise, true},
		{"rapid", message6(t, dhcpv6.MessageTypeSolicit, dhcpv6.WithRapidCommit), dhcpv6.MessageTypeReply, true},
		{"request", message6(t, dhcpv6.MessageTypeRequest, dhcpv6.WithServerID(config().duid())), dhcpv6.MessageTypeReply, true},
		{"renew", message6(t, dhcpv6.MessageTypeRenew), dhcpv6.MessageTypeReply, true},
		{"rebind", message6(t, dhcpv6.MessageTypeRebind), dhcpv6.MessageTypeReply, true},
		{"confirm", message6(t, dhcpv6.MessageTypeConfirm), dhcpv6.MessageTypeReply, false},
		{"release", message6(t, dhcpv6.MessageTypeRelease), dhcpv6.MessageTypeReply, false},
		{"information", message6(t, dhcpv6.MessageTypeInformationRequest), dhcpv6.MessageTypeReply, false},
		{"another server's", message6(t, dhcpv6.MessageTypeRequest, foreign), 0, false},
		{"a server's own", message6(t, dhcpv6.MessageTypeAdvertise), 0, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			reply := config().answer6(c.request)
			if c.want == 0 {
				if reply != nil {
					t.Errorf("answered by %s", reply.Summary())
				}
				return
			}
			if reply == nil || reply.MessageType != c.want || reply.TransactionID != c.request.TransactionID {
				t.Fatalf("answer %v, want %s", reply, c.want)
			}
			if got := reply.Options.DNS(); len(got) != 1 || got[0].String() != "fd00:10:96::a" {
				t.Errorf("DNS servers %v", got)
			}
			ia := reply.Options.OneIANA()
			if (ia != nil) != c.address {
				t.Fatalf("identity association %v", ia)
			}
			if !c.address {
				return
			}
			given := ia.Options.OneAddress()
			if given.IPv6Addr.String() != "fd10:0:2::2" || given.ValidLifetime != Lease || given.PreferredLifetime != Lease || ia.IaId != [4]byte{1, 2, 3, 4} {
				t.Errorf("given %s in %v", given, ia.IaId)
			}
		})
	}
}

func TestAdvertisement(t *testing.T) {
	got := config().advertisement()
	if !got.ManagedConfiguration || got.RouterLifetime < 3*60*60e9 {
		t.Errorf("managed %t, lifetime %s: the guest would not ask for an address, or lose its router while the agent restarts", got.ManagedConfiguration, got.RouterLifetime)
	}
	bytes, err := ndp.MarshalMessage(got)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ndp.ParseMessage(bytes)
	if err != nil {
		t.Fatal(err)
	}
	want := []ndp.Option{
		&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: gatewayMAC},
		&ndp.PrefixInformation{PrefixLength: 120, OnLink: true, ValidLifetime: ndp.Infinity, PreferredLifetime: ndp.Infinity, Prefix: netip.MustParseAddr("fd10:0:2::")},
		ndp.NewMTU(1400),
		&ndp.RecursiveDNSServer{Lifetime: routerLifetime, Servers: []netip.Addr{netip.MustParseAddr("fd00:10:96::a")}},
		&ndp.DNSSearchList{Lifetime: routerLifetime, DomainNames: config().DNS.Search},
	}
	if diff := cmp.Diff(want, parsed.(*ndp.RouterAdvertisement).Options, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseResolvConf(t *testing.T) {
	cases := []struct {
		name, text, subdomain string
		servers, search       []string
		domain                string
	}{
		{
			name:    "a pod's",
			text:    "search default.svc.cluster.local svc.Cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n",
			servers: []string{"10.96.0.10", "fd00:10:96::a"},
			search:  []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
			domain:  "default.svc.cluster.local",
		},
		{name: "empty", text: "# nothing\n", servers: []string{"8.8.8.8"}, search: []string{"cluster.local"}, domain: "cluster.local"},
		{
			name: "subdomain", subdomain: "db",
			text:    "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local",
			servers: []string{"10.96.0.10"},
			search:  []string{"db.default.svc.cluster.local", "default.svc.cluster.local", "svc.cluster.local"},
			domain:  "db.default.svc.cluster.local",
		},
		{
			name: "subdomain that is there", subdomain: "db",
			text:    "nameserver 10.96.0.10\nsearch db.default.svc.cluster.local svc.cluster.local",
			servers: []string{"10.96.0.10"},
			search:  []string{"db.default.svc.cluster.local", "svc.cluster.local"},
			domain:  "db.default.svc.cluster.local",
		},
		{
			name: "nonsense", text: "nameserver\nnameserver nowhere\nsearch\nnameserver 192.0.2.1 # comment\nsearch Example.COM.",
			servers: []string{"192.0.2.1"}, search: []string{"example.com"}, domain: "example.com",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dns := ParseResolvConf(c.text, c.subdomain)
			var servers []string
			for _, server := range dns.Servers {
				servers = append(servers, server.String())
			}
			if diff := cmp.Diff([]any{c.servers, c.search, c.domain}, []any{servers, dns.Search, dns.Domain()}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
