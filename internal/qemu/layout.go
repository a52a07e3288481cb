package qemu

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// Every PCI device of a guest sits in a root port of its own, and firmware numbers the buses in the order of the ports: the device
// in port 1 is 0000:01:00.0 and, as a NIC, enp1s0. Guests remember these addresses, so a port must not change hands when
// memory or the number of spare ports does, nor when a NIC was plugged before a restart. Hence, in order:
//
//	1-4    the first four NICs, empty ones for NICs plugged later
//	5      the SCSI controller, or nothing
//	6      virtio-serial
//	7-     disks on the virtio bus in the order of the spec, then balloon, then rng
//	next   a fifth NIC and so on, then spare ports, where NICs five and on are plugged while the guest runs
//
// The numbers of 1 to 8 are those that KubeVirt gives a guest of one NIC and one disk.
const (
	nicPorts   = 4
	scsiPort   = 5
	serialPort = 6
	diskPort   = 7
	// maxPort is the highest root port, which is also the highest bus number.
	maxPort = 31

	portsPerSlot  = 8    // functions of one PCI device
	firstPortSlot = 2    // slot 1 is the display's
	ownSlotPanic  = 0x1a // from here on devices of the board's own
	ownSlotInput  = 0x1b
	ownSlotUSB    = 0x1d
	ownSlotDog    = 0x1e
)

// manyPorts is the guest memory in bytes above which a guest gets 16 ports in all instead of 8.
const manyPorts = 2 << 30

// place is where a device sits: in a root port, or directly on the root complex.
type place struct {
	port     int
	slot, fn int // on the root complex when port is 0
}

// properties are the bus and address of the place.
func (p place) properties() properties {
	if p.port != 0 {
		return properties{{"bus", portID(p.port)}, {"addr", "0x0"}}
	}
	return properties{{"bus", "pcie.0"}, {"addr", fmt.Sprintf("%#x.%#x", p.slot, p.fn)}}
}

// address is the PCI address that the guest sees.
func (p place) address() string {
	return fmt.Sprintf("0000:%02x:%02x.%x", p.port, p.slot, p.fn)
}

func portID(port int) string { return "port" + strconv.Itoa(port) }

// portNumber is the inverse of portID; 0 for other ids.
func portNumber(id string) int {
	if len(id) < 5 || id[:4] != "port" {
		return 0
	}
	n, err := strconv.Atoi(id[4:])
	if err != nil {
		return 0
	}
	return n
}

// layout hands out places.
type layout struct {
	flat  bool         // everything on the root complex, no ports
	taken map[int]bool // ports in use, by number: true for a NIC
	slots map[int]bool // slots of the root complex that a user asked for
	fixed int          // the last port of devices that are always there
}

func newLayout(flat bool) *layout {
	return &layout{flat: flat, taken: map[int]bool{}, slots: map[int]bool{}, fixed: serialPort}
}

// take claims a port.
func (l *layout) take(port int, nic bool) (place, error) {
	if port < 1 || port > maxPort {
		return place{}, fmt.Errorf("there is no PCI root port %d: a guest has at most %d; remove disks or interfaces", port, maxPort)
	}
	if _, used := l.taken[port]; used {
		return place{}, fmt.Errorf("two devices want PCI root port %d; give them different PCI addresses", port)
	}
	l.taken[port] = nic
	if !nic {
		l.fixed = max(l.fixed, port)
	}
	if l.flat {
		return place{slot: firstPortSlot - 1 + port}, l.flatSlot(port)
	}
	return place{port: port}, nil
}

func (l *layout) flatSlot(port int) error {
	if firstPortSlot-1+port >= ownSlotPanic {
		return errors.New("the root complex has no more slots; remove disks or interfaces, or the annotation that places devices there")
	}
	return nil
}

// free is the first free port from a number on.
func (l *layout) free(from int) int {
	for port := from; ; port++ {
		if _, used := l.taken[port]; !used {
			return port
		}
	}
}

// next claims the first free port from a number on for a device that is no NIC.
func (l *layout) next(from int) (place, error) { return l.take(l.free(from), false) }

var pciAddress = regexp.MustCompile(`^0000:([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])$`)

// at claims the place of a PCI address that the user wrote.
func (l *layout) at(address string, nic bool) (place, error) {
	m := pciAddress.FindStringSubmatch(address)
	if m == nil {
		return place{}, fmt.Errorf("PCI address %q is not supported; write one like 0000:05:00.0", address)
	}
	bus, slot, fn := hex(m[1]), hex(m[2]), hex(m[3])
	switch {
	case bus != 0 && (slot != 0 || fn != 0):
		return place{}, fmt.Errorf("PCI address %s: each bus behind a root port has one device; write 0000:%02x:00.0", address, bus)
	case bus != 0:
		return l.take(bus, nic)
	case fn != 0 || slot < firstPortSlot+maxPort/portsPerSlot+1 || slot >= ownSlotPanic || l.slots[slot]:
		return place{}, fmt.Errorf("PCI address %s is taken or reserved on bus 0; use function 0 of a slot from 06 to %02x, or another bus", address, ownSlotPanic-1)
	}
	l.slots[slot] = true
	return place{slot: slot}, nil
}

func hex(s string) int {
	n, err := strconv.ParseInt(s, 16, 32)
	if err != nil {
		return 0 // the caller's pattern admits hexadecimal digits only
	}
	return int(n)
}

// last is the number of root ports that the guest has.
func (l *layout) last(memory int64) int {
	highest, nics := l.fixed, 0
	for port, nic := range l.taken {
		highest = max(highest, port)
		if nic {
			nics++
		}
	}
	return min(max(highest, nicPorts)+spares(len(l.taken), max(0, nicPorts-nics), memory), maxPort)
}

// spares is how many ports follow the last device: enough that, with the free ones of the first four, a guest of up to 2 GiB has
// eight ports and at least three free, a larger one sixteen and at least six.
func spares(used, free int, memory int64) int {
	want := max(8-used, 3)
	if memory > manyPorts {
		want = max(16-used, 6)
	}
	return max(0, want-free)
}

// rootPorts are the devices that make the ports. Only ports for NICs can be unplugged from, so that a guest does not offer to eject its disk.
func (l *layout) rootPorts(count int) []string {
	var args []string
	for port := 1; port <= count; port++ {
		nic, used := l.taken[port]
		p := properties{{"id", portID(port)}, {"chassis", port}, {"bus", "pcie.0"},
			{"addr", fmt.Sprintf("%#x.%#x", firstPortSlot+(port-1)/portsPerSlot, (port-1)%portsPerSlot)}}
		if (port-1)%portsPerSlot == 0 {
			p.set("multifunction", true)
		}
		if (used && !nic) || port == scsiPort {
			p.set("hotplug", false)
		}
		args = append(args, "-device", p.option("pcie-root-port"))
	}
	return args
}
