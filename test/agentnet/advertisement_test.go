package agentnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/podlab"
	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/podnetworks"
)

// allNodes is where a router advertises itself.
var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// hopLimit marks the frames of this test: nobody else sends advertisements with it.
const hopLimit = 77

// routerAdvertisement makes whoever believes it send everything to the sender.
func routerAdvertisement(mac net.HardwareAddr, around func(next byte, message []byte) (byte, []byte)) []byte {
	from := linkLocal(mac)
	message := append([]byte{134, 0, 0, 0, hopLimit, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, mac...)
	binary.BigEndian.PutUint16(message[2:], checksum6(from, allNodes, 58, message))
	protocol, payload := around(58, message)
	return ethernet(allNodesMAC, mac, unix.ETH_P_IPV6, ipv6(from, allNodes, protocol, 255, payload))
}

// disguises are ways to send an advertisement.
var disguises = map[string]func(byte, []byte) (byte, []byte){
	"plain":               func(next byte, m []byte) (byte, []byte) { return next, m },
	"behind options":      func(next byte, m []byte) (byte, []byte) { return 60, append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, m...) },
	"in an only fragment": func(next byte, m []byte) (byte, []byte) { return 44, append([]byte{next, 0, 0, 0, 0, 0, 0, 1}, m...) },
}

// isAdvertisement matches any of them.
func isAdvertisement(f []byte) bool {
	for _, at := range []int{54, 62} {
		if len(f) > at+4 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[at] == 134 && f[at+4] == hopLimit {
			return true
		}
	}
	return false
}

// hears tells whether an advertisement of one port reaches the other.
func hears(t *testing.T, to, from *port, around func(byte, []byte) (byte, []byte)) bool {
	t.Helper()
	must(t, from.send(routerAdvertisement(from.mac, around)))
	return to.sees(isAdvertisement)
}

func openOn(t *testing.T, ns, device string) *port {
	t.Helper()
	p, err := openPort(ns, device)
	must(t, err)
	t.Cleanup(p.close)
	return p
}

// Nobody on a network that gives addresses can pose as its router. Where a network gives none, a workload may be the router.
func TestOnlyRoutersAdvertise(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "gives")
	newSwitch(t, "bare")
	pod, listener, machine := newPod(t, b.kube), newPod(t, b.kube), newPod(t, b.kube)
	for _, p := range []aPod{pod, listener} {
		b.kube.asks[p.name] = "gives,bare"
		b.kube.give(t, p, "red/gives", "gives", podnetworks.Network{Role: podnetworks.Secondary, IPs: ips(map[string]string{pod.name: "fd00:7::5/64", listener.name: "fd00:7::9/64"}[p.name])})
		b.kube.give(t, p, "red/bare", "bare", podnetworks.Network{Role: podnetworks.Secondary})
	}
	b.kube.asks[machine.name] = `[{"name":"gives","interface":"` + podnetworks.InterfaceName("blue") + `"}]`
	b.kube.give(t, machine, "red/gives", "gives", podnetworks.Network{Role: podnetworks.Secondary, Tap: true, Port: "vm/red/vm/blue", IPs: ips("fd00:7::6/64")})
	for _, p := range []aPod{pod, listener, machine} {
		b.add(t, p)
	}
	taps := &vmdriver.Taps{Ports: lab.ovs, Guard: lab.guard}
	wired, err := taps.Open(t.Context(), machineNIC(t, b, machine, "vm"))
	must(t, err)
	guest := podlab.NewGuest(t, wired.Files[0])
	guest.Do(func() error { return setMAC("eth0", wired.MAC) })
	guest.Up(t, ips("fd00:7::6/64"), nil)
	guest.Do(func() error { return link.TxChecksumOff("eth0") })

	hearing := openOn(t, listener.netns, "net1")
	mustPing(t, guest.Path, netip.MustParseAddr("fd00:7::9"))
	mustPing(t, pod.netns, netip.MustParseAddr("fd00:7::9"))
	senders := map[string]*port{"a pod": openOn(t, pod.netns, "net1"), "a guest": openOn(t, guest.Path, "eth0")}
	for who, from := range senders {
		for how, around := range disguises {
			if hears(t, hearing, from, around) {
				t.Errorf("%s advertises itself as a router, %s", who, how)
			}
		}
	}

	t.Run("where no addresses are given, they pass", func(t *testing.T) {
		if !hears(t, openOn(t, listener.netns, "net2"), openOn(t, pod.netns, "net2"), disguises["plain"]) {
			t.Error("the test would not notice")
		}
	})
	t.Run("a new agent makes up for an old one", func(t *testing.T) {
		record, _ := b.store.Get(pod.uid())
		device := ""
		for _, i := range record.Interfaces {
			if i.Name == "net1" {
				device = i.HostName
			}
		}
		must(t, run("ip", "link", "set", "dev", device, "xdpgeneric", "off"))
		if !hears(t, hearing, senders["a pod"], disguises["plain"]) {
			t.Fatal("without the program nothing is heard either")
		}
		must(t, b.Recover(t.Context(), func(types.UID) bool { return true }))
		if hears(t, hearing, senders["a pod"], disguises["plain"]) {
			t.Error("a pod that an older agent connected advertises itself")
		}
	})
}
