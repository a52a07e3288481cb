// Package masquerade joins a guest to its pod's network by address translation: a tap in the pod's network namespace that
// carries the guest's gateway addresses, and one nftables table (spec: KubeVirt's masquerade binding). NewPlan decides, with
// no I/O, everything that will exist; Apply makes it so and may be repeated at any time. Answering the guest's DHCP requests
// is the job of package guestnet.
package masquerade

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/podnet"
)

// DevicePrefix starts the tap's name. There is no bridge: the tap itself carries the gateway addresses, one hop less per packet.
// It has the name that the bridge of other implementations has, because Istio's redirection names it (pod annotation
// istio.io/reroute-virtual-interfaces: k6t-eth0) and people look for it.
const DevicePrefix = "k6t-"

// maxDeviceName is the kernel's limit (IFNAMSIZ less the final zero), in bytes.
const maxDeviceName = 15

// MaxQueues is the kernel's limit of queues of one tap.
const MaxQueues = 256

// GatewayMAC never differs, so that the guest's ARP entry of its gateway stays true after a migration. It also fixes the
// gateway's link-local address, which the guest's IPv6 default route names.
var GatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}

// GatewayLinkLocal is the EUI-64 address that follows from GatewayMAC.
var GatewayLinkLocal = netip.MustParseAddr("fe80::ff:fe00:0")

// Request is what the user asked for, and the pod interface that the guest shall share.
type Request struct {
	Uplink    podnet.Interface
	Interface virtv1.Interface
	Network   *virtv1.PodNetwork // nil: defaults
	Mesh      bool               // an Istio-compatible sidecar runs in the pod
	Queues    int                // of the tap; 0 or 1: single queue
}

// Plan is everything that will exist in the pod's namespace for one masquerade interface.
type Plan struct {
	Uplink string // pod interface, never changed
	Device string // tap
	MTU    int
	Queues int
	Mesh   bool
	V4, V6 *Pair  // nil: the pod has no address of the family
	Ports  []Port // what is let in; empty: everything
}

// Pair is the inner network of one family.
type Pair struct {
	Gateway netip.Prefix // on the tap
	Guest   netip.Addr
	Pod     netip.Addr // what the guest looks like from outside
}

// Port is a range of ports of one protocol.
type Port struct {
	Protocol    string // tcp or udp
	First, Last uint16
}

// NewPlan decides how the guest is joined. An error is final: only a changed specification helps.
func NewPlan(r Request) (Plan, error) {
	p := Plan{
		Uplink: r.Uplink.Name,
		Device: deviceName(r.Uplink.Name),
		MTU:    r.Uplink.MTU,
		Queues: min(max(r.Queues, 1), MaxQueues),
		Mesh:   r.Mesh,
	}
	network := r.Network
	if network == nil {
		network = &virtv1.PodNetwork{}
	}
	var err error
	if p.V4, err = newPair(firstGlobal(r.Uplink, netip.Addr.Is4), network.VMNetworkCIDR, defaultCIDR4); err != nil {
		return Plan{}, err
	}
	if p.V6, err = newPair(firstGlobal(r.Uplink, netip.Addr.Is6), network.VMIPv6NetworkCIDR, defaultCIDR6); err != nil {
		return Plan{}, err
	}
	if p.V4 == nil && p.V6 == nil {
		return Plan{}, fmt.Errorf("pod interface %s has no global address to masquerade interface %q behind; give the pod network an address range", p.Uplink, r.Interface.Name)
	}
	if p.Ports, err = portsOf(r.Interface); err != nil {
		return Plan{}, err
	}
	return p, nil
}

// PodIPs are the addresses that the guest is reached at, in the order of the pod interface.
func PodIPs(uplink podnet.Interface) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range uplink.IPs {
		first := firstGlobal(uplink, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
		if first == p.Addr() {
			addrs = append(addrs, first)
		}
	}
	return addrs
}

// Addresses are what the tap carries.
func (p Plan) Addresses() []netip.Prefix {
	var all []netip.Prefix
	for _, pair := range p.Pairs() {
		all = append(all, pair.Gateway)
	}
	if p.V6 != nil {
		all = append(all, netip.PrefixFrom(GatewayLinkLocal, 64))
	}
	return all
}

// Pairs are the families that are in use, IPv4 first.
func (p Plan) Pairs() []*Pair {
	var pairs []*Pair
	for _, pair := range []*Pair{p.V4, p.V6} {
		if pair != nil {
			pairs = append(pairs, pair)
		}
	}
	return pairs
}

// Guests are the guest's inner addresses, IPv4 first.
func (p Plan) Guests() []netip.Addr {
	var ips []netip.Addr
	for _, pair := range p.Pairs() {
		ips = append(ips, pair.Guest)
	}
	return ips
}

func deviceName(uplink string) string {
	name := DevicePrefix + uplink
	return name[:min(len(name), maxDeviceName)]
}

// firstGlobal is the first global unicast address of the wanted family, or the zero Addr.
func firstGlobal(i podnet.Interface, family func(netip.Addr) bool) netip.Addr {
	for _, p := range i.IPs {
		if a := p.Addr(); family(a) && a.IsGlobalUnicast() {
			return a
		}
	}
	return netip.Addr{}
}

func portsOf(i virtv1.Interface) ([]Port, error) {
	var ports []Port
	for _, p := range i.Ports {
		port, err := newPort(i.Name, p.Protocol, p.Port, p.Port)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	for _, r := range i.PortRanges {
		port, err := newPort(i.Name, r.Protocol, r.Start, r.End)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// newPort checks again what admission checked: the values become part of a firewall's text.
func newPort(iface, protocol string, first, last int32) (Port, error) {
	protocol = strings.ToLower(protocol)
	if protocol == "" {
		protocol = "tcp"
	}
	if protocol != "tcp" && protocol != "udp" {
		return Port{}, fmt.Errorf("interface %q: protocol %q of port %d is unknown; use TCP or UDP", iface, protocol, first)
	}
	if first < 1 || last > 65535 || first > last {
		return Port{}, fmt.Errorf("interface %q: ports %d-%d are not a range within 1-65535", iface, first, last)
	}
	return Port{Protocol: protocol, First: uint16(first), Last: uint16(last)}, nil
}

// match is the port as nftables writes it.
func (p Port) match() string {
	if p.First == p.Last {
		return fmt.Sprintf("%s dport %d", p.Protocol, p.First)
	}
	return fmt.Sprintf("%s dport %d-%d", p.Protocol, p.First, p.Last)
}

func (p Port) has(port uint16) bool { return p.First <= port && port <= p.Last }
