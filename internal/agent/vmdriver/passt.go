package vmdriver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/masquerade"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

// Passt wires NICs with the passt binding: a process in the pod, which the launcher keeps, turns the guest's packets into connections
// of the pod. The guest has the addresses of the pod's interface, and the pod's interface keeps them too.
type Passt struct{}

// Open implements Wirer.
func (Passt) Open(_ context.Context, nic NIC) (*Wired, error) { return wirePasst(nic) }

// Refresh implements Wirer: nothing of the agent surrounds the guest.
func (Passt) Refresh(_ context.Context, nic NIC) (*Wired, error) { return wirePasst(nic) }

func wirePasst(nic NIC) (*Wired, error) {
	if nic.Network.Pod == nil {
		return nil, fmt.Errorf("interface %q: passt joins the pod network only; use bridge on other networks", nic.Interface.Name)
	}
	uplink, err := nic.uplink()
	if err != nil {
		return nil, err
	}
	if uplink.Tap {
		return nil, fmt.Errorf("interface %q: the port of its network waits for a tap, which passt has not", nic.Interface.Name)
	}
	process, err := planPasst(nic, uplink)
	if err != nil {
		return nil, err
	}
	ips := masquerade.PodIPs(uplink)
	return &Wired{
		MAC: nic.MAC, MTU: uplink.MTU, Offloads: true,
		IPs: ips, PodInterface: uplink.Name, Passt: process,
		Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
			// The pod's own addresses lead to the guest where a port is forwarded.
			return dialEach(ips, dialIn(ctx, nic.Pod.Netns, network, port))
		},
	}, nil
}

// planPasst is what the launcher runs: everything that passt would otherwise find out is told, so that it does not depend on the order
// of the pod's interfaces and routes.
func planPasst(nic NIC, uplink podnet.Interface) (*protocol.Passt, error) {
	args := []string{
		"--interface", uplink.Name,
		"--mtu", strconv.Itoa(uplink.MTU),
		// The gateway is the network's, not a name for the pod's loopback.
		"--no-map-gw",
	}
	var v4, v6 bool
	for _, ip := range masquerade.PodIPs(uplink) {
		n := slices.IndexFunc(uplink.IPs, func(p netip.Prefix) bool { return p.Addr() == ip })
		args = append(args, "--address", ip.String())
		if ip.Is6() {
			v6 = true
			args = append(args, "--gateway", masquerade.GatewayLinkLocal.String(), "--outbound-if6", uplink.Name)
			continue
		}
		v4 = true
		args = append(args, "--netmask", strconv.Itoa(uplink.IPs[n].Bits()), "--outbound-if4", uplink.Name)
		if g := slices.IndexFunc(uplink.Gateways, netip.Addr.Is4); g >= 0 {
			args = append(args, "--gateway", uplink.Gateways[g].String())
		}
	}
	switch {
	case !v4 && !v6:
		return nil, fmt.Errorf("interface %q: the pod's interface %s has no address; use bridge on a network without addresses", nic.Interface.Name, uplink.Name)
	case !v6:
		args = append(args, "--ipv4-only")
	case !v4:
		args = append(args, "--ipv6-only")
	}
	p := &protocol.Passt{Args: append(args, passtNames(nic)...)}
	p.TCP, p.UDP = passtPorts(nic.Interface.Ports)
	if strings.EqualFold(nic.VMI.Annotations[istioInject], "true") {
		p.Except = masquerade.MeshPorts
	}
	return p, nil
}

// passtNames is what the guest learns of name resolution.
func passtNames(nic NIC) []string {
	var args []string
	for _, server := range nic.DNS.Servers {
		args = append(args, "--dns", server.String())
	}
	if len(args) == 0 {
		args = []string{"--dns", "none"}
	}
	search := "none"
	if len(nic.DNS.Search) > 0 {
		search = strings.Join(nic.DNS.Search, " ")
	}
	return append(args, "--search", search)
}

func passtPorts(ports []virtv1.Port) (tcp, udp []uint16) {
	for _, p := range ports {
		if strings.EqualFold(p.Protocol, "udp") {
			udp = append(udp, uint16(p.Port))
		} else {
			tcp = append(tcp, uint16(p.Port))
		}
	}
	slices.Sort(tcp)
	slices.Sort(udp)
	return slices.Compact(tcp), slices.Compact(udp)
}

// unplugged is how long the link of a guest that has come by migration is down, at first and when the guest has not noticed: one that finds
// the link up when it comes to look has noticed nothing.
var unplugged = []time.Duration{time.Second, 3 * time.Second, 9 * time.Second}

// noticed is how soon a guest that has noticed has its new address, and its agent says so.
const noticed = 15 * time.Second

// refreshPasst has a guest that has come by migration ask for its addresses again: those of a pod are not those of another. It is asked
// again while its agent says that it has none of them.
func (d *domain) refreshPasst(ctx context.Context) {
	for _, down := range unplugged {
		if !d.setPasstLinks(ctx, false) {
			return
		}
		sleep(ctx, down)
		d.setPasstLinks(context.WithoutCancel(ctx), true)
		if !sleep(ctx, noticed) || d.hasPasstAddresses(ctx) {
			return
		}
		d.log.Info("the guest still has the addresses of another pod; its link is taken away again")
	}
}

// hasPasstAddresses says whether the guest has an address of its pod on each NIC that passt serves, as far as its agent tells.
func (d *domain) hasPasstAddresses(ctx context.Context) bool {
	if d.describe().Guest == nil {
		return true // nobody knows better
	}
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	interfaces, err := d.agent.Interfaces(ctx)
	if err != nil {
		return true
	}
	var has []string
	for _, i := range interfaces {
		for _, address := range i.Addresses {
			has = append(has, address.IP)
		}
	}
	for _, c := range d.list() {
		if c.Wired.Passt != nil && !slices.ContainsFunc(c.Wired.IPs, func(ip netip.Addr) bool { return slices.Contains(has, ip.String()) }) {
			return false
		}
	}
	return true
}

// setPasstLinks sets the links of all NICs that passt serves, and says whether there are some.
func (d *domain) setPasstLinks(ctx context.Context, up bool) (some bool) {
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	for _, c := range d.list() {
		if c.Wired.Passt == nil || c.Interface.State == virtv1.InterfaceStateLinkDown {
			continue
		}
		some = true
		if err := d.monitor.SetLink(ctx, qemu.NICDevice(c.Interface.Name), up); err != nil {
			d.log.Warn("the guest does not learn its new address before its lease ends", "interface", c.Interface.Name, "error", err)
		}
	}
	return some
}
