package dns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"patchbay/internal/golden"
)

func TestCorefile(t *testing.T) {
	both := []netip.AddrPort{netip.MustParseAddrPort("172.30.0.1:53"), netip.MustParseAddrPort("[fd00:172:30::1]:53")}
	cases := map[string]Config{
		"alone":     {Listen: both, Ready: netip.MustParseAddrPort("172.30.0.1:8181")},
		"upstreams": {Listen: both, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:53")}},
		"two ports": {Listen: append(slices.Clone(both), netip.MustParseAddrPort("172.30.0.1:5353"))},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.Domain, c.Kubeconfig = "cluster.local", "/var/lib/patchbay/default/kubeconfig"
			corefile, err := Corefile(c)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, "corefile", corefile)
		})
	}
	if _, err := Corefile(Config{}); err == nil {
		t.Error("a name server without an address was configured")
	}
}

func TestHostResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "nameserver 127.0.0.53\nnameserver ::1\nnameserver 240.0.0.1\nnameserver 192.0.2.1\nsearch example.org\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := HostResolvers(path, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range got {
		if a.Addr().IsLoopback() || a.Addr() == netip.MustParseAddr("192.0.2.1") {
			t.Errorf("resolver %s must not be used", a)
		}
	}
	if got, err := HostResolvers(path+"-absent", nil); err != nil || got != nil {
		t.Errorf("without the file: %v, %v", got, err)
	}
}

// startServer runs the name server against an API server that the test plays.
func startServer(t *testing.T, upstreams ...netip.AddrPort) []netip.AddrPort {
	t.Helper()
	listen := []netip.AddrPort{freePort(t, "127.0.0.1"), freePort(t, "::1")}
	c := Config{Domain: "cluster.local", Kubeconfig: startAPI(t), Listen: listen, Ready: freePort(t, "127.0.0.1"), Upstreams: upstreams}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	await(t, func() error { return ready(fmt.Sprintf("http://%s/ready", c.Ready)) })
	for _, address := range listen {
		await(t, func() error { return listening(address) })
	}
	return listen
}

func freePort(t *testing.T, ip string) netip.AddrPort {
	t.Helper()
	l, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.LocalAddr().(*net.UDPAddr).AddrPort()
}

// await repeats a check until it succeeds.
func await(t *testing.T, check func() error) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("the name server is not ready:", err)
		}
	}
}

func ready(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

func listening(address netip.AddrPort) error {
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// query returns the answer's code and its records' values.
func query(t *testing.T, server netip.AddrPort, network, name string, kind uint16) string {
	t.Helper()
	message := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	client := &dns.Client{Net: network, Timeout: 3 * time.Second}
	answer, _, err := client.Exchange(message, server.String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	values := []string{dns.RcodeToString[answer.Rcode]}
	for _, record := range answer.Answer {
		values = append(values, strings.TrimPrefix(record.String(), record.Header().String()))
	}
	slices.Sort(values[1:])
	return strings.Join(values, " ")
}

func TestAnswers(t *testing.T) {
	servers := startServer(t)
	questions := []struct {
		name string
		kind uint16
		want string
	}{
		{"web.red.svc.cluster.local", dns.TypeA, "NOERROR 10.96.1.2"},
		{"web.red.svc.cluster.local", dns.TypeAAAA, "NOERROR fd00:10:96::12"},
		{"_http._tcp.web.red.svc.cluster.local", dns.TypeSRV, "NOERROR 0 50 80 web.red.svc.cluster.local."},
		{"db.red.svc.cluster.local", dns.TypeA, "NOERROR 10.128.0.5 10.128.2.6"},
		{"db-0.db.red.svc.cluster.local", dns.TypeA, "NOERROR 10.128.0.5"},
		{"db.red.svc.cluster.local", dns.TypeAAAA, "NOERROR fd00:10:128::5"},
		{"own.red.svc.cluster.local", dns.TypeA, "NOERROR 10.20.0.7"},
		{"own-0.own.red.svc.cluster.local", dns.TypeA, "NOERROR 10.20.0.7"},
		{"own.red.svc.cluster.local", dns.TypeAAAA, "NOERROR"},
		{"10-128-0-7.red.pod.cluster.local", dns.TypeA, "NOERROR 10.128.0.7"},
		{"10-128-0-5.red.pod.cluster.local", dns.TypeA, "NOERROR 10.128.0.5"},
		{"10-128-0-99.red.pod.cluster.local", dns.TypeA, "NXDOMAIN"},
		{"fd00-10-128--5.red.pod.cluster.local", dns.TypeAAAA, "NOERROR fd00:10:128::5"},
		{"2.1.96.10.in-addr.arpa", dns.TypePTR, "NOERROR web.red.svc.cluster.local."},
		{reverse(t, "fd00:10:96::12"), dns.TypePTR, "NOERROR web.red.svc.cluster.local."},
		{reverse(t, "10.128.0.5"), dns.TypePTR, "NOERROR db-0.db.red.svc.cluster.local."},
		{reverse(t, "fd00:10:128::5"), dns.TypePTR, "NOERROR db-0.db.red.svc.cluster.local."},
		{reverse(t, "192.0.2.1"), dns.TypePTR, "NXDOMAIN"},
		{"absent.red.svc.cluster.local", dns.TypeA, "NXDOMAIN"},
		{"example.org", dns.TypeA, "REFUSED"},
	}
	for _, q := range questions {
		for _, server := range servers {
			if got := query(t, server, "udp", q.name, q.kind); got != q.want {
				t.Errorf("%s %s at %s: got %q, want %q", q.name, dns.TypeToString[q.kind], server, got, q.want)
			}
		}
	}
	if got := query(t, servers[0], "tcp", "web.red.svc.cluster.local", dns.TypeA); got != "NOERROR 10.96.1.2" {
		t.Errorf("over TCP: %q", got)
	}
}

func reverse(t *testing.T, ip string) string {
	t.Helper()
	name, err := dns.ReverseAddr(ip)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOtherNamesGoToTheUpstream(t *testing.T) {
	upstream := freePort(t, "127.0.0.1")
	server := &dns.Server{Addr: upstream.String(), Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		answer := new(dns.Msg).SetReply(m)
		record, _ := dns.NewRR(m.Question[0].Name + " 60 IN A 192.0.2.80")
		answer.Answer = append(answer.Answer, record)
		_ = w.WriteMsg(answer)
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = server.ListenAndServe() }()
	<-started
	t.Cleanup(func() { _ = server.Shutdown() })
	servers := startServer(t, upstream)
	got := map[string]string{}
	for _, name := range []string{"example.org", "web.red.svc.cluster.local", "absent.red.svc.cluster.local"} {
		got[name] = query(t, servers[0], "udp", name, dns.TypeA)
	}
	want := map[string]string{"example.org": "NOERROR 192.0.2.80", "web.red.svc.cluster.local": "NOERROR 10.96.1.2", "absent.red.svc.cluster.local": "NXDOMAIN"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
