package masquerade

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"regexp"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/podlab"
)

func ping(t *testing.T, n *podlab.Netns, target netip.Addr) (string, error) {
	t.Helper()
	return n.Run(t.Context(), "ping", "-c1", "-W1", target.String())
}

func muteEcho(t *testing.T, n *podlab.Netns) {
	t.Helper()
	n.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0o644) })
}

func listTable(t *testing.T, n *podlab.Netns) string {
	t.Helper()
	out, err := n.Run(t.Context(), "nft", "list", "table", string(Family), Table)
	if err != nil {
		t.Fatal(out)
	}
	return out
}

func withoutCounts(table string) string {
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(table, "")
}

func routeBy(target, gateway netip.Addr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(),
		Dst: &net.IPNet{IP: target.AsSlice(), Mask: net.CIDRMask(target.BitLen(), target.BitLen())},
	})
}

// loopbackFrame is a UDP datagram from the guest to port 9 of 127.0.0.1, for the gateway's MAC address.
func loopbackFrame(from net.HardwareAddr) []byte {
	frame := append(append([]byte{}, GatewayMAC...), from...)
	frame = append(frame, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 127, 0, 0, 1}
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(append(frame, ip...), 0, 9, 0, 9, 0, 8, 0, 0)
}

func sendFrame(t *testing.T, b *bench, frame []byte) {
	t.Helper()
	b.Guest.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
	})
}
