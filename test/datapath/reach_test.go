package datapath

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"patchbay/internal/podnetworks"
)

// ping sends a few echo requests from a namespace and returns how many were answered. The first one may be lost: userspace
// Open vSwitch drops the packet that makes it look for the other node's Ethernet address.
func ping(t *testing.T, from, to string, args ...string) int {
	t.Helper()
	all := append([]string{"--net=" + namespace(from), "ping", "-n", "-c4", "-i0.1", "-W1"}, append(args, to)...)
	out, _ := exec.Command("nsenter", all...).CombinedOutput()
	var sent, received int
	for line := range strings.Lines(string(out)) {
		if _, err := fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received); err == nil {
			return received
		}
	}
	t.Logf("ping %s from %s: %s", to, from, out)
	return 0
}

func (p *labPod) each(do func(family string, ip netip.Addr)) {
	do("IPv4", p.ip(true))
	do("IPv6", p.ip(false))
}

func TestPodsReachPods(t *testing.T) {
	for _, to := range []string{"b1", "a2"} {
		lab.pods[to].each(func(family string, ip netip.Addr) {
			if n := ping(t, "a1", ip.String()); n < 3 {
				t.Errorf("%s: a1 to %s: %d of 4 answered", family, to, n)
			}
			// The largest packet that the pods' MTU allows, unfragmented.
			size := fmt.Sprint(lab.settings.PodMTU - 28)
			if ip.Is6() {
				size = fmt.Sprint(lab.settings.PodMTU - 48)
			}
			if n := ping(t, "a1", ip.String(), "-Mdo", "-s"+size); n != 4 {
				t.Errorf("%s: a1 to %s with %s bytes: %d of 4 answered", family, to, size, n)
			}
		})
	}
}

func TestPodsReachTheirGatewayAndTheirNeighboursLinkLocalAddress(t *testing.T) {
	for _, gateway := range lab.pods["a1"].Network.Gateways {
		if n := ping(t, "a1", gateway.String()); n < 3 {
			t.Errorf("gateway %s: %d of 4 answered", gateway, n)
		}
	}
	// Not the address that follows from the MAC: guests choose others.
	if err := inside("b1", func() error { return run("ip addr add fe80::1234/64 dev eth0 nodad") }); err != nil {
		t.Fatal(err)
	}
	if n := ping(t, "a1", "fe80::1234%eth0"); n < 3 {
		t.Errorf("link-local address of a neighbour: %d of 4 answered", n)
	}
}

// TestPodsDoNotSpoof counts what arrives from an address that is another pod's.
func TestPodsDoNotSpoof(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		to, own, stolen := lab.pods["a1"].ip(is4), lab.pods["b1"].ip(is4), lab.pods["a2"].ip(is4)
		family, length := "ip", 32
		if !is4 {
			family, length = "ip6", 128
		}
		err := run(fmt.Sprintf(`
ip -n b1 addr add %[2]s/%[3]d dev eth0 nodad
nsenter --net=/run/netns/a1 nft 'add table inet spoof; add chain inet spoof in { type filter hook prerouting priority -300; }
add counter inet spoof own; add counter inet spoof stolen
add rule inet spoof in %[1]s saddr %[4]s counter name own; add rule inet spoof in %[1]s saddr %[2]s counter name stolen'`, family, stolen, length, own))
		if err != nil {
			t.Fatal(err)
		}
		ping(t, "b1", to.String(), "-I", own.String())
		ping(t, "b1", to.String(), "-I", stolen.String())
		if n := counter(t, "a1", "own"); n == 0 {
			t.Errorf("%s: nothing arrived from b1 itself", family)
		}
		if n := counter(t, "a1", "stolen"); n != 0 {
			t.Errorf("%s: %d packets arrived from an address that is not b1's", family, n)
		}
		if err := run(fmt.Sprintf("ip -n b1 addr del %s/%d dev eth0; nsenter --net=/run/netns/a1 nft delete table inet spoof", stolen, length)); err != nil {
			t.Fatal(err)
		}
	}
}

func counter(t *testing.T, where, name string) (packets int) {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+namespace(where), "nft", "list", "counter", "inet", "spoof", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "packets ")
	if _, err := fmt.Sscan(rest, &packets); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return packets
}

// echoServer greets each connection with its name and the client's address and sends back what follows. A datagram that asks
// is answered so, too, and any other is sent back.
func echoServer(t *testing.T, where string, at netip.AddrPort, name string) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	err := inside(where, func() (err error) {
		if listener, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		packets, err = net.ListenPacket("udp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { serveTCP(listener, name) })
	running.Go(func() { serveUDP(packets, name) })
	t.Cleanup(func() { listener.Close(); packets.Close(); running.Wait() })
}

func serveTCP(l net.Listener, name string) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer conn.Close()
			fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr())
			_, _ = io.Copy(conn, conn) // until the client ends
		})
	}
}

func serveUDP(p net.PacketConn, name string) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			return
		}
		answer := buffer[:n]
		if answer[0] == '?' {
			answer = fmt.Appendf(nil, "%s %s\n", name, from)
		}
		_, _ = p.WriteTo(answer, from)
	}
}

// ask connects and returns the server's name and the client's address as the server sees it.
func ask(from, network string, to netip.AddrPort) (name string, seen netip.Addr, err error) {
	conn, err := dialFrom(from, network, to, 2*time.Second)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", netip.Addr{}, err
	}
	if network == "udp" {
		if _, err := conn.Write([]byte("?\n")); err != nil {
			return "", netip.Addr{}, err
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, address, _ := strings.Cut(strings.TrimSpace(line), " ")
	client, err := netip.ParseAddrPort(address)
	return name, client.Addr().Unmap(), err
}

func TestPodsLeaveThroughTheirOwnNode(t *testing.T) {
	for _, at := range []netip.Addr{fabric4, fabric6} {
		echoServer(t, "", netip.AddrPortFrom(at, 7777), "fabric")
	}
	for i, pod := range []string{"a1", "a2"} {
		node := lab.nodes[i]
		for outside, want := range map[netip.Addr]netip.Addr{fabric4: node.fabric4, fabric6: node.fabric6} {
			_, seen, err := ask(pod, "tcp", netip.AddrPortFrom(outside, 7777))
			if err != nil || seen != want {
				t.Errorf("%s to %s came from %s (error %v), want its node's address %s", pod, outside, seen, err, want)
			}
		}
	}
}

func TestPodsReachNodes(t *testing.T) {
	for _, node := range lab.nodes {
		for _, to := range []netip.Addr{node.fabric4, node.fabric6, podnetworks.Management(node.Subnets[0]), podnetworks.Management(node.Subnets[1])} {
			if n := ping(t, "a1", to.String()); n < 3 {
				t.Errorf("a1 to %s of %s: %d of 4 answered", to, node.Name, n)
			}
		}
	}
}

func TestNodesReachPods(t *testing.T) {
	for _, name := range []string{"a1", "a2"} {
		lab.pods[name].each(func(family string, ip netip.Addr) {
			at := netip.AddrPortFrom(ip, 8080)
			echoServer(t, name, at, name)
			for _, node := range lab.nodes {
				_, seen, err := ask(node.Name, "tcp", at)
				want := podnetworks.Management(node.Subnets[0])
				if ip.Is6() {
					want = podnetworks.Management(node.Subnets[1])
				}
				if err != nil || seen != want {
					t.Errorf("%s: %s to %s came from %s (error %v), want %s", family, node.Name, name, seen, err, want)
				}
			}
		})
	}
}
