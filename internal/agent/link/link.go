// Package link makes the network devices of a node's pods and guests: veth pairs, taps, their addresses, routes and
// settings. Everything here is netlink and ioctl on the namespace of the calling thread or of a path; it must not know about
// Kubernetes, CNI or OVS's database.
package link

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Guard prepares a device of the node's namespace for being plugged into OVS, before it is up. What there is to do depends on
// the datapath: nothing on the kernel's, see Shield for the userspace one.
type Guard interface {
	Cover(ctx context.Context, device string) error
	// PartialChecksums says whether OVS may be given packets whose checksum is left to the device.
	PartialChecksums() bool
}

// Open is the guard of hosts that run the kernel datapath.
type Open struct{}

// Cover does nothing: the kernel datapath takes frames before the host's stack sees them.
func (Open) Cover(context.Context, string) error { return nil }

// PartialChecksums are fine: the kernel datapath completes them.
func (Open) PartialChecksums() bool { return true }

// Prefixes of the device names that this package's users make in the node's namespace.
const (
	VethPrefix = "pv" // one end of a pod's veth pair
	TapPrefix  = "pt" // tap of a guest
)

// Name makes a device name (at most 15 characters) out of what identifies the device.
func Name(prefix string, identity ...string) string {
	h := sha256.New()
	for _, part := range identity {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return prefix + hex.EncodeToString(h.Sum(nil))[:12]
}

// Remove deletes a device of the calling thread's namespace. A device that is not there is no error.
func Remove(name string) error {
	device, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(device)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// Names lists the devices of the calling thread's namespace with a prefix.
func Names(prefix string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	var names []string
	for _, i := range all {
		if len(i.Name) == len(prefix)+12 && i.Name[:len(prefix)] == prefix {
			names = append(names, i.Name)
		}
	}
	return names, nil
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// ipNet turns an address with its subnet's length into what netlink takes.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// maxName is the kernel's limit, in bytes.
const maxName = 15

// ValidName says what keeps a text from being a device's name.
func ValidName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not an interface name", name)
	case len(name) > maxName:
		return fmt.Errorf("interface name %q has more than %d characters", name, maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r > '~' }):
		return fmt.Errorf("interface name %q may not contain spaces, slashes or colons", name)
	}
	return nil
}
