// Package neighbours listens at a guest's tap to what shows its addresses: what it says to its neighbours by ARP and IPv6 neighbour
// discovery, and what a DHCP server of its network grants it. So an address is known that we did not give and that no agent in the guest
// reports. The kernel passes up only the few frames that matter. The package must not decide what an address is worth.
package neighbours

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/netns"
)

// Tap is where to listen.
type Tap struct {
	Netns  string // path that setns accepts
	Device string
	MAC    net.HardwareAddr // of the guest: only it speaks for itself
}

// Positions in a frame, in bytes. IPv4 headers with options are not looked at: DHCP servers send none.
const (
	sourceMAC   = 6
	etherType   = 12
	arpSender   = 28 // protocol address
	arpEnd      = 32
	ip6Next     = 20
	ip6Source   = 22
	icmp6Type   = 54
	ndTarget    = 62
	ndEnd       = 78
	ip4Header   = 14 // version and length
	ip4Protocol = 23
	udpPorts    = 34 // source and destination
	dhcpYours   = 58 // address that the server grants
	dhcpClient  = 70 // MAC address
	dhcpMagic   = 278
	dhcpOptions = 282

	typeARP   = 0x0806
	typeIP4   = 0x0800
	typeIP6   = 0x86dd
	icmp6     = 58
	udp       = 17
	noOptions = 0x45 // version 4, five words

	neighbourSolicitation  = 135
	neighbourAdvertisement = 136

	serverToClient = 67<<16 | 68
	dhcpCookie     = 0x63825363
	dhcpPad        = 0
	dhcpEnd        = 255
	dhcpType       = 53
	dhcpAck        = 5

	snapLength = 590 // the options of a DHCP answer that everybody must take
)

// filter passes ARP, neighbour solicitations and advertisements from one MAC address, and DHCP answers to it.
func filter(mac net.HardwareAddr) ([]bpf.RawInstruction, error) {
	front, back := binary.BigEndian.Uint32(mac[:4]), uint32(binary.BigEndian.Uint16(mac[4:]))
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: etherType, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeIP4, SkipTrue: 11}, // to DHCP
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeARP, SkipTrue: 6},  // to the source
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeIP6, SkipTrue: 19},
		bpf.LoadAbsolute{Off: ip6Next, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmp6, SkipTrue: 17},
		bpf.LoadAbsolute{Off: icmp6Type, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: neighbourSolicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: neighbourAdvertisement, SkipTrue: 14},

		bpf.LoadAbsolute{Off: sourceMAC, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: front, SkipTrue: 12},
		bpf.LoadAbsolute{Off: sourceMAC + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: back, SkipTrue: 11, SkipFalse: 10},

		bpf.LoadAbsolute{Off: ip4Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: noOptions, SkipTrue: 8},
		bpf.LoadAbsolute{Off: ip4Protocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: udp, SkipTrue: 6},
		bpf.LoadAbsolute{Off: udpPorts, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverToClient, SkipTrue: 4},
		bpf.LoadAbsolute{Off: dhcpClient, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: front, SkipTrue: 2},
		bpf.LoadAbsolute{Off: dhcpClient + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: back, SkipTrue: 1},

		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: snapLength},
	})
}

// Listen reports every address that the guest uses, as often as it says so, until ctx ends or the tap is gone.
func Listen(ctx context.Context, tap Tap, report func(netip.Addr)) error {
	file, err := open(tap)
	if err != nil {
		return fmt.Errorf("listen to the neighbours of %s: %w", tap.Device, err)
	}
	defer file.Close()
	stop := context.AfterFunc(ctx, func() { file.Close() })
	defer stop()
	frame := make([]byte, snapLength)
	for {
		n, err := file.Read(frame)
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // set down for a moment; a tap that is gone has no socket either
		case err != nil:
			return fmt.Errorf("listen to the neighbours of %s: %w", tap.Device, err)
		}
		if address, ok := spoken(frame[:n]); ok {
			report(address)
		}
	}
}

func open(tap Tap) (file *os.File, err error) {
	if len(tap.MAC) != 6 {
		return nil, fmt.Errorf("%q is not an Ethernet address", tap.MAC)
	}
	err = netns.Do(tap.Netns, func() error {
		device, err := net.InterfaceByName(tap.Device)
		if err != nil {
			return err
		}
		// No protocol until the filter stands: nothing else is to come through.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := bind(fd, device.Index, tap.MAC); err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), tap.Device)
		return nil
	})
	return file, err
}

func bind(fd, index int, mac net.HardwareAddr) error {
	program, err := filter(mac)
	if err != nil {
		return err
	}
	instructions := make([]unix.SockFilter, len(program))
	for n, i := range program {
		instructions[n] = unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K}
	}
	attached := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &attached); err != nil {
		return err
	}
	everything := uint16(unix.ETH_P_ALL)
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything<<8 | everything>>8, Ifindex: index})
}

// spoken is the address that a frame says its sender has. A question whether an address is free (ARP probe, duplicate address detection)
// says nothing yet.
func spoken(frame []byte) (netip.Addr, bool) {
	if len(frame) < arpEnd {
		return netip.Addr{}, false
	}
	var address netip.Addr
	switch kind := binary.BigEndian.Uint16(frame[etherType:]); {
	case kind == typeARP:
		address = netip.AddrFrom4([4]byte(frame[arpSender:arpEnd]))
	case kind == typeIP4 && grants(frame):
		address = netip.AddrFrom4([4]byte(frame[dhcpYours : dhcpYours+4]))
	case len(frame) >= ndEnd && frame[icmp6Type] == neighbourAdvertisement:
		address = netip.AddrFrom16([16]byte(frame[ndTarget:ndEnd]))
	case len(frame) >= ndEnd && frame[icmp6Type] == neighbourSolicitation:
		address = netip.AddrFrom16([16]byte(frame[ip6Source : ip6Source+16]))
	default:
		return netip.Addr{}, false
	}
	useful := !address.IsUnspecified() && !address.IsLinkLocalUnicast() && !address.IsMulticast() && !address.IsLoopback()
	return address, useful
}

// grants says whether a frame is a DHCP server's last word that its client may have the address.
func grants(frame []byte) bool {
	if len(frame) < dhcpOptions || binary.BigEndian.Uint32(frame[dhcpMagic:]) != dhcpCookie {
		return false
	}
	for options := frame[dhcpOptions:]; len(options) > 0 && options[0] != dhcpEnd; {
		if options[0] == dhcpPad {
			options = options[1:]
			continue
		}
		if len(options) < 2 || len(options) < 2+int(options[1]) {
			return false
		}
		if options[0] == dhcpType {
			return options[1] == 1 && options[2] == dhcpAck
		}
		options = options[2+int(options[1]):]
	}
	return false
}
