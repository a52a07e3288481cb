package masquerade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/podlab"
)

// silence is how long a test waits for packets that must not come.
const silence = 300 * time.Millisecond

// bench is a guest behind a masqueraded pod, and a client.
type bench struct {
	*podlab.Lab
	Guest   *podlab.Guest
	Applier *Applier
	Plan    Plan
}

func newBench(t *testing.T, change func(*Request)) *bench {
	t.Helper()
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	request := Request{Uplink: lab.Record(podlab.PodV4, podlab.PodV6).Interfaces[0], Interface: virtv1.Interface{Name: "default"}}
	if change != nil {
		change(&request)
	}
	plan, err := NewPlan(request)
	if err != nil {
		t.Fatal(err)
	}
	applier, err := NewApplier()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := applier.Open(t.Context(), lab.Pod.Path, plan)
	if err != nil {
		t.Fatal(err)
	}
	guest := podlab.NewGuest(t, fds[0])
	guest.Up(t,
		[]netip.Prefix{netip.PrefixFrom(plan.V4.Guest, plan.V4.Gateway.Bits()), netip.PrefixFrom(plan.V6.Guest, plan.V6.Gateway.Bits())},
		[]netip.Addr{plan.V4.Gateway.Addr(), plan.V6.Gateway.Addr()})
	return &bench{Lab: lab, Guest: guest, Applier: applier, Plan: plan}
}

func listed(ports ...virtv1.Port) func(*Request) {
	return func(r *Request) { r.Interface.Ports = ports }
}

// announce serves TCP on a port of every address of the namespace: each connection is told who serves and whom it sees.
func announce(t *testing.T, n *podlab.Netns, who string, port int) {
	t.Helper()
	var listener net.Listener
	n.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			remote := netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr().Unmap()
			fmt.Fprintf(conn, "%s sees %s", who, remote)
			conn.Close()
		}
	}()
}

// ask connects and returns what announce says, or the kind of failure.
func ask(t *testing.T, n *podlab.Netns, target netip.Addr, port int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	if port == 49152 || port == 49153 {
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), silence)
	}
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", netip.AddrPortFrom(target, uint16(port)).String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return "silence"
	case err != nil:
		return err.Error()
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(answer)
}

type question struct {
	from   *podlab.Netns
	target netip.Addr
	port   int
	want   string
}

func check(t *testing.T, questions ...question) {
	t.Helper()
	for _, q := range questions {
		if got := ask(t, q.from, q.target, q.port); got != q.want {
			t.Errorf("port %d of %s: %q, want %q", q.port, q.target, got, q.want)
		}
	}
}

var (
	podV4Addr, podV6Addr       = podlab.PodV4.Addr(), podlab.PodV6.Addr()
	clientV4Addr, clientV6Addr = podlab.ClientV4.Addr(), podlab.ClientV6.Addr()
	loop4, loop6               = netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
)

func TestListedPortsOnly(t *testing.T) {
	b := newBench(t, listed(virtv1.Port{Port: 80}, virtv1.Port{Port: 49152}))
	for _, port := range []int{80, 81, 49152} {
		announce(t, b.Guest.Netns, "guest", port)
	}
	check(t,
		question{b.Client, podV4Addr, 80, "guest sees " + clientV4Addr.String()},
		question{b.Client, podV6Addr, 80, "guest sees " + clientV6Addr.String()},
		question{b.Client, podV4Addr, 81, "refused"},
		question{b.Client, podV6Addr, 81, "refused"},
		question{b.Client, podV4Addr, 49152, "silence"},
		question{b.Client, podV6Addr, 49152, "silence"},
		question{b.Pod, loop4, 80, "guest sees 10.0.2.1"},
		question{b.Pod, loop6, 80, "refused"},
	)
	muteEcho(t, b.Guest.Netns)
	if out, err := ping(t, b.Client, podV4Addr); err != nil {
		t.Errorf("the pod does not answer a ping although ports are listed: %s", out)
	}
}

func TestEveryPort(t *testing.T) {
	b := newBench(t, nil)
	for _, port := range []int{80, 60000, 49152, 49153} {
		announce(t, b.Guest.Netns, "guest", port)
	}
	check(t,
		question{b.Client, podV4Addr, 60000, "guest sees " + clientV4Addr.String()},
		question{b.Client, podV6Addr, 60000, "guest sees " + clientV6Addr.String()},
		question{b.Client, podV4Addr, 61000, "refused"}, // by the guest
		question{b.Client, podV4Addr, 49152, "silence"},
		question{b.Client, podV6Addr, 49153, "silence"},
		question{b.Pod, loop4, 80, "guest sees 10.0.2.1"},
		question{b.Pod, loop6, 80, "refused"},
		question{b.Guest.Netns, podV4Addr, 80, "guest sees 10.0.2.1"}, // its own pod address
		question{b.Guest.Netns, podV6Addr, 80, "guest sees fd10:0:2::1"},
	)
	for _, address := range []netip.Addr{podV4Addr, podV6Addr} {
		if out, err := ping(t, b.Client, address); err != nil {
			t.Errorf("ping %s: %s", address, out)
		}
	}
	muteEcho(t, b.Guest.Netns)
	if _, err := ping(t, b.Client, podV4Addr); err == nil {
		t.Error("the pod answers a ping that belongs to the guest")
	}
}

func TestGuestLeavesAsPod(t *testing.T) {
	b := newBench(t, listed(virtv1.Port{Port: 80}))
	announce(t, b.Client, "client", 443)
	check(t,
		question{b.Guest.Netns, clientV4Addr, 443, "client sees " + podV4Addr.String()},
		question{b.Guest.Netns, clientV6Addr, 443, "client sees " + podV6Addr.String()},
	)
	for _, address := range []netip.Addr{clientV4Addr, clientV6Addr, b.Plan.V4.Gateway.Addr(), b.Plan.V6.Gateway.Addr()} {
		if out, err := ping(t, b.Guest.Netns, address); err != nil {
			t.Errorf("ping %s: %s", address, out)
		}
	}
	// Windows guests count their own ports from 49152 on: answers to those come back.
	var conn net.Conn
	b.Guest.Do(func() (err error) {
		conn, err = (&net.Dialer{LocalAddr: &net.TCPAddr{Port: 49152}}).DialContext(t.Context(), "tcp", clientV4Addr.String()+":443")
		return err
	})
	conn.Close()
}

func TestMesh(t *testing.T) {
	b := newBench(t, func(r *Request) { r.Mesh = true })
	for _, port := range []int{22, 80, 15020} {
		announce(t, b.Guest.Netns, "guest", port)
	}
	announce(t, b.Pod, "sidecar", 80)
	announce(t, b.Pod, "sidecar", 15020)
	check(t,
		question{b.Client, podV4Addr, 80, "sidecar sees " + clientV4Addr.String()},
		question{b.Client, podV4Addr, 22, "guest sees " + clientV4Addr.String()},
		question{b.Client, podV6Addr, 22, "guest sees " + clientV6Addr.String()},
		question{b.Pod, loop4, 80, "guest sees 10.0.2.1"},
		question{b.Pod, loop4, 15020, "sidecar sees 127.0.0.1"},
	)
	// how a sidecar hands a connection on
	var conn net.Conn
	b.Pod.Do(func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: meshSource.AsSlice()}, Timeout: 5 * time.Second}
		conn, err = dialer.DialContext(t.Context(), "tcp", podV4Addr.String()+":80")
		return err
	})
	defer conn.Close()
	if answer, _ := io.ReadAll(conn); string(answer) != "guest sees 10.0.2.1" {
		t.Errorf("the sidecar's connection got %q", answer)
	}
}

// The guest's frames come without checksums and are larger than the MTU; the pod's NIC may hand over neither.
func TestBulkWithOffloads(t *testing.T) {
	b := newBench(t, nil)
	for name, c := range map[string]struct {
		server, client *podlab.Netns
		address        netip.Addr
	}{
		"guest sends":      {b.Client, b.Guest.Netns, clientV4Addr},
		"guest sends IPv6": {b.Client, b.Guest.Netns, clientV6Addr},
		"guest takes":      {b.Guest.Netns, b.Client, podV4Addr},
		"guest takes IPv6": {b.Guest.Netns, b.Client, podV6Addr},
		"from the pod":     {b.Guest.Netns, b.Pod, b.Plan.V4.Guest},
	} {
		t.Run(name, func(t *testing.T) { transfer(t, c.server, c.client, c.address) })
	}
}

func transfer(t *testing.T, server, client *podlab.Netns, address netip.Addr) {
	t.Helper()
	var listener net.Listener
	server.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":5001")
		return err
	})
	defer listener.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // 8 MiB
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := client.Dial(ctx, "tcp", netip.AddrPortFrom(address, 5001).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	go func() {
		conn.Write(data)
		conn.(*net.TCPConn).CloseWrite()
	}()
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	peer.SetDeadline(deadline)
	sum := sha256.New()
	start := time.Now()
	if n, err := io.Copy(sum, peer); err != nil || n != int64(len(data)) {
		t.Fatalf("%d of %d bytes came: %v", n, len(data), err)
	}
	want := sha256.Sum256(data)
	if !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("the bytes differ")
	}
	t.Logf("%.0f Mbit/s", float64(len(data))*8/1e6/time.Since(start).Seconds())
}

func TestGuestIsFencedIn(t *testing.T) {
	b := newBench(t, listed(virtv1.Port{Port: 80}))
	announce(t, b.Guest.Netns, "guest", 81)
	announce(t, b.Client, "client", 443)
	b.Client.Do(func() error { return routeBy(b.Plan.V4.Guest, podV4Addr) })
	b.Guest.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return podlab.AddAddr(link, netip.MustParsePrefix("10.0.2.99/24"))
	})
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if conn, err := b.Client.Dial(ctx, "tcp", b.Plan.V4.Guest.String()+":81"); err == nil {
		conn.Close()
		t.Error("a neighbour reached an unlisted port by the inner address")
	}
	err := b.Guest.Try(func() error {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 2, 99)}, Timeout: silence}
		conn, err := dialer.DialContext(t.Context(), "tcp", clientV4Addr.String()+":443")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil {
		t.Error("the guest spoke with an address that is not its own")
	}
	for _, rule := range []string{`oifname "k6t-eth0" counter packets 0 bytes 0 drop`, `iifname "k6t-eth0" ip saddr != 10.0.2.2 counter packets 0`} {
		if table := listTable(t, b.Pod); strings.Contains(table, rule) {
			t.Errorf("the rule %q dropped nothing:\n%s", rule, table)
		}
	}
}

// A packet to 127.0.0.1 from outside would be delivered: route_localnet is on.
func TestGuestCannotReachLoopback(t *testing.T) {
	b := newBench(t, nil)
	sendFrame(t, b, loopbackFrame(b.Guest.MAC))
	deadline := time.Now().Add(5 * time.Second)
	for strings.Contains(listTable(t, b.Pod), `ip daddr 127.0.0.0/8 counter packets 0`) {
		if time.Now().After(deadline) {
			t.Fatalf("the frame was not dropped by the guard:\n%s", listTable(t, b.Pod))
		}
	}
}

func TestRefreshKeepsConnections(t *testing.T) {
	b := newBench(t, nil)
	var listener net.Listener
	b.Guest.Do(func() (err error) { listener, err = net.Listen("tcp", ":80"); return err })
	defer listener.Close()
	conn, err := b.Client.Dial(t.Context(), "tcp", podV4Addr.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	before := withoutCounts(listTable(t, b.Pod))
	for range 2 {
		if err := b.Applier.Refresh(t.Context(), b.Pod.Path, b.Plan); err != nil {
			t.Fatal(err)
		}
	}
	if after := withoutCounts(listTable(t, b.Pod)); after != before {
		t.Errorf("the rules changed:\n%s\nwere\n%s", after, before)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	peer.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("still there")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(io.LimitReader(peer, 11)); string(got) != "still there" {
		t.Errorf("got %q: %v", got, err)
	}
}

// An agent that died while the launcher was at its work must not take the tap from under the guest that is about to start.
func TestOpenLeavesHeldTap(t *testing.T) {
	lab := podlab.New(t, podlab.PodV4)
	plan, err := NewPlan(Request{Uplink: lab.Record(podlab.PodV4).Interfaces[0], Queues: 3})
	if err != nil {
		t.Fatal(err)
	}
	applier, err := NewApplier()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		fds, err := applier.Open(t.Context(), lab.Pod.Path, plan)
		if err != nil {
			t.Fatal(err)
		}
		if len(fds) != 3 {
			t.Errorf("%d descriptors, want 3", len(fds))
		}
		lab.Pod.Do(func() error {
			link, err := netlink.LinkByName(plan.Device)
			if err == nil && (link.Attrs().MTU != podlab.MTU || link.Attrs().HardwareAddr.String() != "02:00:00:00:00:00") {
				t.Errorf("tap has MTU %d and MAC %s", link.Attrs().MTU, link.Attrs().HardwareAddr)
			}
			return err
		})
		if _, err := applier.Open(t.Context(), lab.Pod.Path, plan); !errors.Is(err, ErrBusy) {
			t.Errorf("a second tap: %v", err)
		}
		CloseAll(fds) // the launcher has given up: the next start may have it
	}
}
