// Package neighbours listens to what a guest says of its addresses to its neighbours, by ARP and IPv6 neighbour discovery, at the guest's
// tap: so an address is known that nobody gave and that no agent in the guest reports. The kernel passes up only the few frames that
// matter. The package must not decide what an address is worth.
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

// Positions in a frame, in bytes.
const (
	sourceMAC = 6
	etherType = 12
	arpSender = 28 // protocol address
	arpEnd    = 32
	ip6Next   = 20
	ip6Source = 22
	icmp6Type = 54
	ndTarget  = 62
	ndEnd     = 78

	typeARP = 0x0806
	typeIP6 = 0x86dd
	icmp6   = 58

	neighbourSolicitation  = 135
	neighbourAdvertisement = 136

	snapLength = 128
)

// filter passes ARP, neighbour solicitations and advertisements from one MAC address.
func filter(mac net.HardwareAddr) ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: sourceMAC, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(mac[:4]), SkipTrue: 10},
		bpf.LoadAbsolute{Off: sourceMAC + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipTrue: 8},
		bpf.LoadAbsolute{Off: etherType, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeARP, SkipTrue: 7},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeIP6, SkipTrue: 5},
		bpf.LoadAbsolute{Off: ip6Next, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmp6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: icmp6Type, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: neighbourSolicitation, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: neighbourAdvertisement, SkipTrue: 1},
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
	switch {
	case binary.BigEndian.Uint16(frame[etherType:]) == typeARP:
		address = netip.AddrFrom4([4]byte(frame[arpSender:arpEnd]))
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
