package neighbours

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/podlab"
)

var guest = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// frame makes a frame of hexadecimal words.
func frame(t *testing.T, words ...string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(strings.Join(words, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const (
	toAll   = "ffffffffffff"
	mine    = "020000000001"
	another = "020000000002"
	arp     = "0806 0001 0800 0604 0001"
	ip6     = "86dd 60000000 0020 3a ff"
	global  = "fd000000000000000000000000000007"
	local   = "fe800000000000000000000000000001"
	nobody  = "00000000000000000000000000000000"
	rest    = "0000 00000000"
)

// dhcp is a server's answer to a client, with options.
func dhcp(client, options string) []string {
	return []string{client, another, "0800 4500 0140 0000 0000 4011 0000 0a0a0a01 ffffffff 0043 0044 012c 0000",
		"02 01 06 00 00000000 0000 8000 00000000 0a0a0a14 00000000 00000000", client, strings.Repeat("00", 10+64+128), "63825363", options}
}

var cases = []struct {
	name  string
	words []string
	want  string // empty: nothing is said
}{
	{"ARP request", []string{toAll, mine, arp, mine, "0a0a0a0e", "000000000000", "0a0a0a01"}, "10.10.10.14"},
	{"ARP probe", []string{toAll, mine, arp, mine, "00000000", "000000000000", "0a0a0a0e"}, ""},
	{"ARP of another", []string{toAll, another, arp, another, "0a0a0a0f", "000000000000", "0a0a0a01"}, ""},
	{"solicitation", []string{toAll, mine, ip6, global, nobody, "87 00", rest, global}, "fd00::7"},
	{"duplicate address detection", []string{toAll, mine, ip6, nobody, nobody, "87 00", rest, global}, ""},
	{"link-local solicitation", []string{toAll, mine, ip6, local, nobody, "87 00", rest, global}, ""},
	{"advertisement", []string{toAll, mine, ip6, local, nobody, "88 00", rest, global}, "fd00::7"},
	{"echo", []string{toAll, mine, ip6, global, nobody, "80 00", rest, global}, ""},
	{"IPv4", []string{toAll, mine, "0800 4500 0020 0000 0000 4011 0000 0a0a0a0e 0a0a0a01 0000000000000000"}, ""},
	{"short", []string{toAll, mine, arp}, ""},
	{"DHCP grant", dhcp(mine, "35 01 05 ff"), "10.10.10.20"},
	{"DHCP grant after other options", dhcp(mine, "00 36 04 0a0a0a01 35 01 05 ff"), "10.10.10.20"},
	{"DHCP offer", dhcp(mine, "35 01 02 ff"), ""},
	{"DHCP grant to another", dhcp(another, "35 01 05 ff"), ""},
	{"DHCP without type", dhcp(mine, "ff"), ""},
	{"DHCP cut short", dhcp(mine, "36 04 0a"), ""},
}

func TestListen(t *testing.T) {
	lab := podlab.NewNetns(t)
	ours, theirs := "tap0", "peer0"
	lab.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: ours}, PeerName: theirs}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		for _, name := range []string{ours, theirs} {
			device, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(device); err != nil {
				return err
			}
		}
		return nil
	})
	said := make(chan netip.Addr, 64)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Listen(ctx, Tap{Netns: lab.Path, Device: ours, MAC: guest}, func(a netip.Addr) { said <- a })
	}()
	send := sender(t, lab, theirs)
	// What is sent before the socket stands is lost; this one is repeated until it is heard.
	ready := frame(t, toAll, mine, arp, mine, "01010101", "000000000000", "01010102")
	await(t, said, netip.MustParseAddr("1.1.1.1"), func() { send(ready) })
	for _, c := range cases {
		send(frame(t, c.words...))
		want := netip.MustParseAddr("9.9.9.9")
		mark := frame(t, toAll, mine, arp, mine, "09090909", "000000000000", "01010102")
		send(mark)
		got := []string{}
		for {
			a := next(t, said)
			if a == want {
				break
			}
			if a != netip.MustParseAddr("1.1.1.1") {
				got = append(got, a.String())
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: heard %q, want %q", c.name, got, c.want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func sender(t *testing.T, lab *podlab.Netns, device string) func([]byte) {
	t.Helper()
	fd, index := -1, 0
	lab.Do(func() (err error) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func(data []byte) {
		t.Helper()
		if err := unix.Sendto(fd, data, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			t.Fatal(err)
		}
	}
}

func await(t *testing.T, said <-chan netip.Addr, want netip.Addr, again func()) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case a := <-said:
			if a == want {
				return
			}
		case <-tick.C:
			again()
		case <-deadline:
			t.Fatalf("%s was not heard", want)
		}
	}
}

func next(t *testing.T, said <-chan netip.Addr) netip.Addr {
	t.Helper()
	select {
	case a := <-said:
		return a
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard")
		return netip.Addr{}
	}
}
