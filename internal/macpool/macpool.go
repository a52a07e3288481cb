// Package macpool hands out MAC addresses. A Pool picks free addresses of a range, remembers who holds which, and keeps what was
// promised to a request apart from what is known to be stored, so that neither a refused request nor a crash loses or doubles an
// address. It is pure: no clock, no client, no goroutine. Package assign applies it to objects, package watch keeps it true.
package macpool

import (
	"errors"
	"fmt"
	"net"
)

// Address is an Ethernet address as a number of 48 bits.
type Address uint64

// Reserved is the address of the bridge in the pod of a machine with masquerade. It is never picked.
const Reserved Address = 0x02_00_00_00_00_00

const (
	octets    = 6
	lowOctets = 40 // bits behind the first octet
)

// Parse reads an address in any of the usual forms.
func Parse(s string) (Address, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return 0, err
	}
	if len(hw) != octets {
		return 0, fmt.Errorf("address %s: a MAC address has %d octets, not %d", s, octets, len(hw))
	}
	var a Address
	for _, octet := range hw {
		a = a<<8 | Address(octet)
	}
	return a, nil
}

// String gives the usual form, 02:00:00:ab:cd:ef.
func (a Address) String() string {
	hw := make(net.HardwareAddr, octets)
	for i := range hw {
		hw[octets-1-i] = byte(a >> (8 * i))
	}
	return hw.String()
}

func (a Address) firstOctet() byte { return byte(a >> lowOctets) }

// multicast addresses belong to groups; no NIC may have one.
func (a Address) multicast() bool { return a.firstOctet()&1 == 1 }

// Range is what addresses are picked from, both ends included.
type Range struct{ First, Last Address }

func (r Range) String() string { return r.First.String() + " - " + r.Last.String() }

func (r Range) contains(a Address) bool { return r.First <= a && a <= r.Last }

// Texts that administrators know.
var (
	errHalf  = errors.New("both or none of the KubeMacPool ranges needs to be configured")
	errGroup = "invalid mac address. Multicast addressing is not supported. Unicast addressing must be used. The first octet is 0X%X"
)

// ParseRange reads and checks a range as an administrator writes it. Neither end may be missing.
func ParseRange(start, end string) (Range, error) {
	if start == "" || end == "" {
		return Range{}, errHalf
	}
	var r Range
	for _, side := range []struct {
		name, text string
		into       *Address
	}{{"rangeStart", start, &r.First}, {"rangeEnd", end, &r.Last}} {
		a, err := Parse(side.text)
		if err != nil {
			return Range{}, fmt.Errorf("failed to parse %s because the mac address is invalid", side.name)
		}
		*side.into = a
	}
	return r, r.check()
}

func (r Range) check() error {
	if r.Last <= r.First {
		return fmt.Errorf("failed to set mac address range: invalid range. Range end is lesser than or equal to its start. start: %v end: %v", r.First, r.Last)
	}
	if r.First.multicast() {
		return fmt.Errorf("failed to set RangeStart: "+errGroup, r.First.firstOctet())
	}
	if r.Last.multicast() {
		return fmt.Errorf("failed to set RangeEnd: "+errGroup, r.Last.firstOctet())
	}
	return nil
}

// DefaultRange is the range of a cluster whose administrator chose none: the 2^24 addresses behind 02 and two random octets, so
// that clusters on one wire rarely meet.
func DefaultRange(random uint16) Range {
	first := Reserved | Address(random)<<24
	return Range{First: first, Last: first | 0xffffff}
}
