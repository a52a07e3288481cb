// Package bridged joins a guest's tap to an interface that some CNI plugin made in the pod: both become ports of a bridge in the pod's
// network namespace, and a stand-in keeps the interface's name and addresses, so that whoever looks into the pod finds what the plugin
// has put there. The package must not know about virtual machines or CNI.
//
//	guest --- tap0 --- k6t-eth0 --- eth0-nic --- (the plugin's network)      eth0: the stand-in
package bridged

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"patchbay/internal/agent/podnet"
)

// Plan is what there shall be in the pod's namespace.
type Plan struct {
	Uplink string // the name that the plugin chose, and the stand-in's
	NIC    string // the plugin's interface while it is bridged
	Bridge string
	Tap    string
	MAC    net.HardwareAddr // of Uplink: the guest's, unless it has another
	Guest  net.HardwareAddr // the guest's, if it has another
	MTU    int
	IPs    []netip.Prefix // of Uplink
	Queues int
	// Server is the address on the bridge from which the guest is told its own; invalid: it is told nothing.
	Server netip.Prefix
}

// NewPlan derives names as KubeVirt has them, which users know from their scripts. index is the position of the NIC in the machine's
// specification.
func NewPlan(uplink podnet.Interface, queues, index int, serve bool) Plan {
	p := Names(uplink.Name)
	p.MAC, p.MTU, p.IPs, p.Queues = uplink.MAC, uplink.MTU, uplink.IPs, queues
	if _, has := p.IPv4(); has && serve {
		p.Server = netip.PrefixFrom(serverAddress(index), 32)
	}
	return p
}

// Names is a plan that has only its names.
func Names(uplink string) Plan {
	base := uplink
	if rest, hashed := strings.CutPrefix(uplink, "pod"); hashed && rest != "" {
		base = rest
	}
	tap := base
	if n, ok := strings.CutPrefix(base, "net"); ok && isNumber(n) {
		tap = n
	}
	if uplink == "eth0" {
		tap = "0"
	}
	return Plan{Uplink: uplink, NIC: short("", base, "-nic"), Bridge: short("k6t-", base, ""), Tap: short("tap", tap, "")}
}

func isNumber(text string) bool {
	_, err := strconv.Atoi(text)
	return err == nil
}

const maxName = 15

// short makes a device name, by a hash when it would be too long.
func short(prefix, base, suffix string) string {
	if room := maxName - len(prefix) - len(suffix); len(base) > room {
		sum := sha256.Sum256([]byte(base))
		base = hex.EncodeToString(sum[:])[:room]
	}
	return prefix + base + suffix
}

// serverAddress is 169.254.75.1 followed by the NIC's number.
func serverAddress(index int) netip.Addr {
	if a, err := netip.ParseAddr("169.254.75.1" + strconv.Itoa(index)); err == nil {
		return a
	}
	return netip.AddrFrom4([4]byte{169, 254, 76, byte(index)})
}

// IPv4 is the first address that is not link-local.
func (p Plan) IPv4() (netip.Prefix, bool) {
	for _, ip := range p.IPs {
		if ip.Addr().Is4() && ip.Addr().IsGlobalUnicast() {
			return ip, true
		}
	}
	return netip.Prefix{}, false
}

// guest is the guest's address.
func (p Plan) guest() net.HardwareAddr {
	if p.Guest != nil {
		return p.Guest
	}
	return p.MAC
}

// bridgeMAC is none of the addresses on the network: the bridge must not be taken for the guest.
func (p Plan) bridgeMAC() net.HardwareAddr { return derived("bridge", p.Uplink, p.MAC) }

func derived(what, name string, mac net.HardwareAddr) net.HardwareAddr {
	sum := sha256.Sum256([]byte(what + "/" + name + "/" + mac.String()))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}
