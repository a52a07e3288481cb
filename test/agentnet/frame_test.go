package agentnet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"patchbay/internal/agent/netns"
)

// port is a raw socket on one device: what a tenant can send and see.
type port struct {
	fd  int
	mac net.HardwareAddr
}

// openPort opens a device of a namespace.
func openPort(path, device string) (*port, error) {
	p := &port{fd: -1}
	err := netns.Do(path, func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		p.mac = d.HardwareAddr
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
		return errors.Join(
			unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: d.Index}))
	})
	return p, err
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (p *port) close() { unix.Close(p.fd) }

func (p *port) send(frame []byte) error {
	_, err := unix.Write(p.fd, frame)
	return err
}

// sees says whether a frame that matches comes in within half a second.
func (p *port) sees(match func(frame []byte) bool) bool {
	buffer := make([]byte, 2048)
	for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
		n, err := unix.Read(p.fd, buffer)
		if err == nil && match(buffer[:n]) {
			return true
		}
	}
	return false
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(to, from net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	frame := append(append(append([]byte{}, to...), from...), byte(kind>>8), byte(kind))
	for _, p := range payload {
		frame = append(frame, p...)
	}
	return frame
}

// arpRequest asks who has target.
func arpRequest(mac net.HardwareAddr, from, target netip.Addr) []byte {
	f, t := from.As4(), target.As4()
	return ethernet(broadcast, mac, unix.ETH_P_ARP, []byte{0, 1, 8, 0, 6, 4, 0, 1}, mac, f[:], make([]byte, 6), t[:])
}

// arpReplyFrom matches an answer that says it has the address.
func arpReplyFrom(ip netip.Addr) func([]byte) bool {
	want := ip.As4()
	return func(f []byte) bool {
		return len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_ARP && f[21] == 2 && [4]byte(f[28:32]) == want
	}
}

// neighborSolicitation asks who has target, as IPv6 does.
func neighborSolicitation(mac net.HardwareAddr, from, target netip.Addr) []byte {
	t := target.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], t[13:])
	to := net.HardwareAddr{0x33, 0x33, group[12], group[13], group[14], group[15]}
	message := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:]...)
	message = append(append(message, 1, 1), mac...)
	return ethernet(to, mac, unix.ETH_P_IPV6, ipv6(from, netip.AddrFrom16(group), 58, 255, message))
}

// advertisementOf matches a neighbour advertisement for the address.
func advertisementOf(ip netip.Addr) func([]byte) bool {
	want := ip.As16()
	return func(f []byte) bool {
		return len(f) >= 78 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[20] == 58 && f[54] == 136 && [16]byte(f[62:78]) == want
	}
}

// datagram is a UDP packet in a frame to a MAC address of the tenant's choice.
func datagram(to, mac net.HardwareAddr, from, target netip.AddrPort, text string) []byte {
	udp := make([]byte, 8, 8+len(text))
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], target.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(text)))
	udp = append(udp, text...)
	if target.Addr().Is4() {
		return ethernet(to, mac, unix.ETH_P_IP, ipv4(from.Addr(), target.Addr(), unix.IPPROTO_UDP, udp))
	}
	binary.BigEndian.PutUint16(udp[6:], checksum6(from.Addr(), target.Addr(), unix.IPPROTO_UDP, udp))
	return ethernet(to, mac, unix.ETH_P_IPV6, ipv6(from.Addr(), target.Addr(), unix.IPPROTO_UDP, 64, udp))
}

// ipv4 leaves the UDP checksum out, as IPv4 allows.
func ipv4(from, to netip.Addr, protocol byte, payload []byte) []byte {
	f, t := from.As4(), to.As4()
	header := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}
	header = append(append(header, f[:]...), t[:]...)
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(payload)))
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

func ipv6(from, to netip.Addr, protocol, hops byte, payload []byte) []byte {
	f, t := from.As16(), to.As16()
	header := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, hops}
	header = append(append(header, f[:]...), t[:]...)
	if protocol == 58 {
		binary.BigEndian.PutUint16(payload[2:], checksum6(from, to, protocol, payload))
	}
	return append(header, payload...)
}

func checksum6(from, to netip.Addr, protocol byte, payload []byte) uint16 {
	f, t := from.As16(), to.As16()
	pseudo := append(append([]byte{}, f[:]...), t[:]...)
	pseudo = append(pseudo, 0, 0, byte(len(payload)>>8), byte(len(payload)), 0, 0, 0, protocol)
	return checksum(append(pseudo, payload...))
}

func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
