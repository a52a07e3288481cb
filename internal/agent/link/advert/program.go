// Package advert keeps a workload from posing as a router: a program on the node's end of its device drops the router
// advertisements (ICMPv6 type 134) that the workload sends. OVN cannot: it lets them pass whatever its ACLs say (23.03.1 and later).
// The program is written here instruction by instruction, so no compiler for it is needed.
//
// It hangs in the kernel's generic XDP hook, which comes before packet sockets. So it works for Open vSwitch's userspace datapath, which
// reads devices through those, as for the kernel's.
package advert

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Verdicts of XDP.
const (
	drop = 1
	pass = 2
)

// maxTags and maxHeaders are how many VLAN tags and extension headers the program follows. What has more tags is no packet of a network
// here; what has more headers is dropped, as is what ends before its type can be told (RFC 7113).
const (
	maxTags    = 2
	maxHeaders = 8
)

// Protocol numbers of IPv6's extension headers.
const (
	hopByHop   = 0
	routing    = 43
	fragment   = 44
	auth       = 51
	icmp6      = 58
	options    = 60
	mobility   = 135
	identity   = 139
	shim6      = 140
	routerAdv  = 134 // of ICMPv6
	ipv6Header = 40  // bytes
)

// Registers that calls keep, and where on the stack bytes of the frame are put.
const (
	frame   = asm.R6
	offset  = asm.R7
	next    = asm.R8 // protocol of the header at offset
	scratch = -8
)

// load copies bytes at the offset to the stack; a frame that ends before jumps to the label.
func load(plus int32, length int32, short string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, frame),
		asm.Mov.Reg(asm.R2, offset),
		asm.Add.Imm(asm.R2, plus),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, scratch),
		asm.Mov.Imm(asm.R4, length),
		asm.FnXdpLoadBytes.Call(),
		asm.JSLT.Imm(asm.R0, 0, short),
	}
}

// loadType puts the Ethernet type at the offset into R0.
func loadType() asm.Instructions {
	return append(load(0, 2, "pass"),
		asm.LoadMem(asm.R0, asm.RFP, scratch, asm.Half),
		asm.HostTo(asm.BE, asm.R0, asm.Half))
}

func instructions() asm.Instructions {
	code := asm.Instructions{asm.Mov.Reg(frame, asm.R1), asm.Mov.Imm(offset, 12)}
	code = append(code, loadType()...)
	for range maxTags {
		untagged := fmt.Sprintf("untagged%d", len(code))
		tagged := fmt.Sprintf("tagged%d", len(code))
		code = append(code, asm.JEq.Imm(asm.R0, unix.ETH_P_8021Q, tagged), asm.JNE.Imm(asm.R0, unix.ETH_P_8021AD, untagged))
		more := append(asm.Instructions{asm.Add.Imm(offset, 4)}, loadType()...)
		more[0] = more[0].WithSymbol(tagged)
		code = append(code, more...)
		code = append(code, asm.Mov.Reg(asm.R0, asm.R0).WithSymbol(untagged))
	}
	code = append(code, asm.JNE.Imm(asm.R0, unix.ETH_P_IPV6, "pass"), asm.Add.Imm(offset, 2))
	code = append(code, load(6, 1, "pass")...)
	code = append(code, asm.LoadMem(next, asm.RFP, scratch, asm.Byte), asm.Add.Imm(offset, ipv6Header))
	for n := range maxHeaders {
		code = append(code, header(n)...)
	}
	code = append(code, asm.JNE.Imm(next, icmp6, "drop"))
	message := load(0, 1, "drop")
	message[0] = message[0].WithSymbol("icmp6")
	code = append(code, message...)
	return append(code,
		asm.LoadMem(asm.R0, asm.RFP, scratch, asm.Byte),
		asm.JEq.Imm(asm.R0, routerAdv, "drop"),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"),
		asm.Return(),
	)
}

// header steps over one extension header. A fragment that is not the first one is harmless: without the first it becomes no packet, and
// receivers refuse fragments that overlap (RFC 5722).
func header(n int) asm.Instructions {
	label := func(name string) string { return fmt.Sprintf("%s%d", name, n) }
	code := asm.Instructions{asm.JEq.Imm(next, icmp6, "icmp6"), asm.JEq.Imm(next, fragment, label("fragment")), asm.JEq.Imm(next, auth, label("auth"))}
	for _, kind := range []int32{hopByHop, routing, options, mobility, identity, shim6} {
		code = append(code, asm.JEq.Imm(next, kind, label("plain")))
	}
	code = append(code, asm.Ja.Label("pass"))

	step := func(name string, body ...asm.Instruction) {
		begin := load(0, 4, "drop")
		begin[0] = begin[0].WithSymbol(label(name))
		begin = append(begin, asm.LoadMem(next, asm.RFP, scratch, asm.Byte))
		code = append(append(code, begin...), body...)
	}
	length := func(extra, shift int32) []asm.Instruction {
		return []asm.Instruction{
			asm.LoadMem(asm.R0, asm.RFP, scratch+1, asm.Byte),
			asm.Add.Imm(asm.R0, extra), asm.LSh.Imm(asm.R0, shift), asm.Add.Reg(offset, asm.R0), asm.Ja.Label(label("done")),
		}
	}
	step("plain", length(1, 3)...)
	step("auth", length(2, 2)...)
	step("fragment",
		asm.LoadMem(asm.R0, asm.RFP, scratch+2, asm.Half), asm.HostTo(asm.BE, asm.R0, asm.Half),
		asm.RSh.Imm(asm.R0, 3), asm.JNE.Imm(asm.R0, 0, "pass"), asm.Add.Imm(offset, 8))
	return append(code, asm.Mov.Reg(next, next).WithSymbol(label("done")))
}

// program is loaded once in a process; the devices keep the program when the process ends.
var program = sync.OnceValues(func() (*ebpf.Program, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11 count programs as locked memory
		return nil, err
	}
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "patchbay_advert", Type: ebpf.XDP, Instructions: instructions(), License: "Apache-2.0"})
})

// Drop drops router advertisements that come out of a device of the calling thread's namespace. It may be repeated.
func Drop(device string) error {
	loaded, err := program()
	if err != nil {
		return fmt.Errorf("load the program that drops router advertisements: %w", explained(err))
	}
	found, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if err := netlink.LinkSetXdpFdWithFlags(found, loaded.FD(), nl.XDP_FLAGS_SKB_MODE); err != nil {
		return fmt.Errorf("drop router advertisements of %s: %w", device, explained(err))
	}
	return nil
}

// explained says what the kernel needs. The verifier's own words are left out: they fill pages.
func explained(err error) error {
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		err = refused.Cause
	}
	return fmt.Errorf("%w (Linux 5.18 or later with CONFIG_BPF_SYSCALL is needed)", err)
}
