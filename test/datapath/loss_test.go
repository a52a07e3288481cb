package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/ovn"
	"patchbay/internal/topology"
)

// stream is numbered datagrams to an echo server, one every ten milliseconds.
type stream struct {
	name     string
	conn     net.Conn
	end      chan struct{}
	finished sync.WaitGroup
	sent     int
	received map[string]bool
}

func startStream(t *testing.T, from string, to netip.AddrPort) *stream {
	t.Helper()
	conn, err := dialFrom(from, "udp", to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{name: from + " to " + to.String(), conn: conn, end: make(chan struct{}), received: map[string]bool{}}
	s.finished.Go(s.send)
	s.finished.Go(s.receive)
	return s
}

func (s *stream) send() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; s.sent++ {
		// An error is an earlier datagram's ICMP answer; that datagram counts as lost.
		_, _ = fmt.Fprintf(s.conn, "%d\n", s.sent)
		select {
		case <-s.end:
			s.sent++
			// What is on its way has a second to come back.
			_ = s.conn.SetReadDeadline(time.Now().Add(time.Second))
			return
		case <-tick.C:
		}
	}
}

func (s *stream) receive() {
	buffer := make([]byte, 100)
	for {
		n, err := s.conn.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err == nil {
			s.received[strings.TrimSpace(string(buffer[:n]))] = true
		}
	}
}

// stop ends the stream and returns the numbers that did not come back.
func (s *stream) stop() (sent int, lost []int) {
	close(s.end)
	s.finished.Wait()
	s.conn.Close()
	for i := range s.sent {
		if !s.received[fmt.Sprint(i)] {
			lost = append(lost, i)
		}
	}
	return s.sent, lost
}

// talk keeps one TCP connection through a service busy until its context ends, and returns the longest silence.
func talk(ctx context.Context, conn net.Conn) (longest time.Duration, err error) {
	in := bufio.NewReader(conn)
	for ctx.Err() == nil {
		began := time.Now()
		_ = conn.SetDeadline(began.Add(10 * time.Second))
		if _, err := fmt.Fprintf(conn, "%d\n", began.UnixNano()); err != nil {
			return longest, err
		}
		if _, err := in.ReadString('\n'); err != nil {
			return longest, err
		}
		longest = max(longest, time.Since(began))
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return longest, nil
}

// undisturbed runs something while pings and a connection through a service go between the nodes, and fails when a packet
// is lost.
func undisturbed(t *testing.T, what func()) {
	t.Helper()
	echoServer(t, "", netip.AddrPortFrom(fabric4, 7777), "")
	endpoints := backends(t, 8080, "a2", "b1")
	serve(t, topology.Service{Name: "busy", ClusterIPs: vips, Ports: []topology.ServicePort{
		{Protocol: "tcp", Port: 80, Endpoints: endpoints[:2]}, {Protocol: "udp", Port: 80, Endpoints: endpoints[:2]},
	}})
	targets := []netip.AddrPort{netip.AddrPortFrom(fabric4, 7777), netip.AddrPortFrom(vip4, 80), netip.AddrPortFrom(vip6, 80)}
	for _, e := range endpoints {
		targets = append(targets, e.Address)
		ping(t, "a1", e.Address.Addr().String()) // so that the nodes know each other
	}
	conn, err := dialFrom("a1", "tcp", netip.AddrPortFrom(vip4, 80), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var streams []*stream
	for _, to := range targets {
		streams = append(streams, startStream(t, "a1", to))
	}
	ctx, cancel := context.WithCancel(t.Context())
	type silence struct {
		longest time.Duration
		err     error
	}
	talked := make(chan silence, 1)
	go func() {
		longest, err := talk(ctx, conn)
		talked <- silence{longest, err}
	}()
	what()
	cancel()
	s := <-talked
	t.Logf("connection through the service: longest silence %s", s.longest.Round(time.Millisecond))
	if s.err != nil {
		t.Errorf("connection through the service: %v", s.err)
	}
	total := 0
	for _, stream := range streams {
		sent, lost := stream.stop()
		total += sent
		if len(lost) > 0 {
			t.Errorf("%s: %d of %d datagrams lost: %v", stream.name, len(lost), sent, lost)
		}
	}
	t.Logf("%d datagrams on %d ways", total, len(streams))
}

// restart kills a daemon of the central side with signal 9 and starts it again after a while.
func restart(t *testing.T, name string, between func()) {
	t.Helper()
	d := lab.daemons[name]
	if err := d.kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if between != nil {
		between()
	}
	if err := d.start(path("central", name+".log")); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsLostWhenTheNorthboundServerIsKilled(t *testing.T) {
	undisturbed(t, func() {
		restart(t, "nb", nil)
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsLostWhenTheSouthboundServerIsKilled(t *testing.T) {
	undisturbed(t, func() {
		restart(t, "sb", nil)
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsLostWhenNorthdIsKilled(t *testing.T) {
	undisturbed(t, func() {
		restart(t, "northd", nil)
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsLostWhenTheStoreDies(t *testing.T) {
	undisturbed(t, func() {
		lab.stop()
		time.Sleep(time.Second)
		if err := lab.startStore(); err != nil {
			t.Error(err)
		}
	})
}

// TestNothingIsLostWhenTheNorthboundDatabaseIsWiped starts the server again on an empty file.
func TestNothingIsLostWhenTheNorthboundDatabaseIsWiped(t *testing.T) {
	before := southbound(t)
	undisturbed(t, func() {
		began := time.Now()
		restart(t, "nb", func() {
			if err := os.Remove(path("central", "nb.db")); err != nil {
				t.Fatal(err)
			}
			if err := createDatabase("nb"); err != nil {
				t.Fatal(err)
			}
		})
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
		t.Logf("rebuilt after %s", time.Since(began).Round(time.Millisecond))
		time.Sleep(3 * time.Second) // northd tries again after up to two seconds: what it does then counts, too
		if err := lab.settle(); err != nil {
			t.Error(err)
		}
	})
	if diff := cmp.Diff(before, southbound(t)); diff != "" {
		t.Errorf("tunnel keys changed (-before +after):\n%s", diff)
	}
	log, err := os.ReadFile(path("central", "northd.log"))
	if err != nil || !strings.Contains(string(log), "lock lost") {
		t.Errorf("northd was not held back while the database was empty (error %v)", err)
	}
	t.Run("and a new pod is connected", func(t *testing.T) {
		if err := lab.startPod("late", "node-2", 20); err != nil {
			t.Fatal(err)
		}
		if n := ping(t, "a1", lab.pods["late"].ip(true).String()); n < 3 {
			t.Errorf("%d of 4 answered", n)
		}
	})
}

// southbound lists what the nodes' flows are made of: the keys of datapaths and ports.
func southbound(t *testing.T) string {
	t.Helper()
	var all []byte
	for _, columns := range []string{"external_ids,tunnel_key list datapath_binding", "logical_port,tunnel_key,chassis list port_binding"} {
		out, err := exec.Command("bash", "-c", "ovn-sbctl --db=unix:"+path("central", "sb.sock")+" --bare --columns="+columns+" | paste -sd' ' | sed 's/  /\\n/g' | sort").Output()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	return string(all)
}

func TestTheSouthboundDatabaseForgetsADeletedNode(t *testing.T) {
	count := func() string {
		out, err := exec.Command("ovn-sbctl", "--db=unix:"+path("central", "sb.sock"), "--bare", "--columns=name", "list", "chassis").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	sb := &ovn.Southbound{Endpoint: ovn.Endpoint{Address: "unix:" + path("central", "sb.sock")}}
	if err := run(`ovn-sbctl --db=unix:` + path("central", "sb.sock") + ` chassis-add gone geneve 172.30.0.99`); err != nil {
		t.Fatal(err)
	}
	if err := sb.RemoveChassis(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if err := sb.RemoveChassis(t.Context(), "never-was"); err != nil {
		t.Errorf("a chassis that does not exist: %v", err)
	}
	if got := count(); strings.Contains(got, "gone") || !strings.Contains(got, "node-1") || !strings.Contains(got, "node-2") {
		t.Errorf("chassis left: %s; want node-1 and node-2", got)
	}
}
