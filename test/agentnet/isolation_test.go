package agentnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
)

// tenant is a pod as an attacker: it sends what it likes on its device and knows the MAC of the node's end.
type tenant struct {
	netns, device string
	hostMAC       net.HardwareAddr
	ip, ip6       netip.Addr
}

// hole is a way to reach the node past OVN. It says whether it worked.
type hole struct {
	name  string
	works func(t *testing.T, a tenant) bool
}

var holes = []hole{
	{"ARP for the node's address is answered", func(t *testing.T, a tenant) bool {
		p := a.open(t)
		defer p.close()
		must(t, p.send(arpRequest(p.mac, a.ip, nodeIP.Addr())))
		return p.sees(arpReplyFrom(nodeIP.Addr()))
	}},
	{"a solicitation for the node's end's own address is answered", func(t *testing.T, a tenant) bool {
		p := a.open(t)
		defer p.close()
		target := linkLocal(a.hostMAC)
		must(t, p.send(neighborSolicitation(p.mac, a.ip6, target)))
		return p.sees(advertisementOf(target))
	}},
	{"a datagram in a frame to the node's end arrives", func(t *testing.T, a tenant) bool { return a.delivers(t, a.ip, nodeIP.Addr()) }},
	{"an IPv6 datagram in a frame to the node's end arrives", func(t *testing.T, a tenant) bool { return a.delivers(t, a.ip6, nodeIP6.Addr()) }},
}

// linkLocal is the address that the kernel gives to a device by itself.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func (a tenant) open(t *testing.T) *port {
	t.Helper()
	p, err := openPort(a.netns, a.device)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// delivers sends a datagram to a socket of the node in a frame addressed to the node's end of the pair.
func (a tenant) delivers(t *testing.T, from, to netip.Addr) bool {
	t.Helper()
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	target := netip.AddrPortFrom(to, uint16(socket.LocalAddr().(*net.UDPAddr).Port))
	p := a.open(t)
	defer p.close()
	must(t, p.send(datagram(a.hostMAC, p.mac, netip.AddrPortFrom(from, 4000), target, "hole")))
	must(t, socket.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
	_, err = socket.Read(make([]byte, 10))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Userspace OVS reads the pods' devices through packet sockets, so the node's kernel sees the frames too. It must not act on
// them: that would be a way around every policy.
func TestTenantCannotReachTheNodePastOVN(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	device, err := netlink.LinkByName(hostDevice(t, b, p))
	must(t, err)
	a := tenant{p.netns, "eth0", device.Attrs().HardwareAddr, p.ip, p.ip6}
	for _, h := range holes {
		if h.works(t, a) {
			t.Errorf("hole: %s", h.name)
		}
	}
}

// The attacks above do work on a device that is not covered: the test would notice a hole.
func TestAttacksWorkOnAnUncoveredDevice(t *testing.T) {
	ns, err := newNetns()
	must(t, err)
	pair := link.Veth{Host: link.Name(link.VethPrefix, t.Name()), Netns: ns, Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, MTU: 1400,
		IPs: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::9/64")}}
	must(t, link.Connect(context.Background(), link.Open{}, pair))
	t.Cleanup(func() { must(t, link.Remove(pair.Host)) })
	// The node must have a way back, or it does not answer.
	must(t, link.Set(link.ForDevice(pair.Host, link.Setting{Key: "ipv6/accept_dad", Value: "0"})...))
	for _, ip := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		must(t, configure(pair.Host, netip.MustParsePrefix(ip)))
	}
	device, err := netlink.LinkByName(pair.Host)
	must(t, err)
	a := tenant{ns, "eth0", device.Attrs().HardwareAddr, netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}
	for _, h := range holes {
		if err := eventually(func() error {
			if !h.works(t, a) {
				return errors.New(h.name + ": did not work")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// What a pod may send to the node arrives there once.
func TestDatagramsToTheNodeArriveOnce(t *testing.T) {
	b := newBench(t)
	standNetwork(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	for _, to := range []netip.Addr{nodeIP.Addr(), nodeIP6.Addr()} {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
		must(t, err)
		defer socket.Close()
		const count = 20
		must(t, netns.Do(p.netns, func() error { return sendNumbered(socket.LocalAddr().String(), count) }))
		seen := map[string]int{}
		buffer := make([]byte, 100)
		must(t, socket.SetReadDeadline(time.Now().Add(time.Second)))
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				break
			}
			seen[string(buffer[:n])]++
		}
		if len(seen) != count {
			t.Errorf("%s: %d of %d datagrams arrived", to, len(seen), count)
		}
		for text, times := range seen {
			if times != 1 {
				t.Errorf("%s: datagram %s arrived %d times", to, text, times)
			}
		}
	}
}

func sendNumbered(to string, count int) error {
	conn, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	for n := range count {
		if _, err := fmt.Fprintf(conn, "%d", n); err != nil {
			return err
		}
	}
	return nil
}
