package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/neighbours"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
)

// Taps wires NICs whose logical port waits for a tap (podnet.Interface.Tap), whatever their binding is called: the tap is made in the
// node's namespace and plugged straight into the integration bridge, so that a frame passes no veth and no bridge on its way. OVN
// answers DHCP and router solicitations.
//
// A NIC's logical port is the machine's, not the pod's, and the tap is the pod's: two pods of one machine on two nodes, as
// in a migration, have a tap each for the same port, and OVN decides (requested-chassis) where frames go. So the target of a migration
// opens its NICs with Open, as a start does, and nothing of the source changes by it.
type Taps struct {
	Ports TapPorts
	Guard link.Guard
	// Dial connects to an address of an overlay network; nil: the node has no way into it.
	Dial func(ctx context.Context, network podnet.Interface, proto string, to netip.AddrPort) (net.Conn, error)
}

// TapPorts is what Taps asks of the node's Open vSwitch; *ovs.Client is one.
type TapPorts interface {
	Plug(context.Context, ovs.Port) error
	Unplug(ctx context.Context, names ...string) error
	AwaitInstalled(ctx context.Context, name string) error
	ForgetConnections(ctx context.Context, name string) error
}

// installLimit is how long a start waits for OVN to install a port's flows before it lets go and tries again.
const installLimit = 20 * time.Second

// Open implements Wirer. It returns when OVN has the port's flows in place.
func (w *Taps) Open(ctx context.Context, nic NIC) (*Wired, error) {
	i, err := nic.uplink()
	if err != nil {
		return nil, err
	}
	tap := tapOf(nic, i)
	files, err := link.MakeTap(tap)
	if errors.Is(err, link.ErrBusy) {
		return nil, NotYet(err)
	}
	if err != nil {
		return nil, err
	}
	if err := w.plug(ctx, nic, i, tap); err != nil {
		// The port must not stay without its device, which vanishes with the descriptors.
		err = errors.Join(err, w.Ports.Unplug(context.WithoutCancel(ctx), tap.Name))
		closeAll(files)
		return nil, err
	}
	wired := w.wired(nic, i)
	wired.Files = files
	return wired, nil
}

func (w *Taps) plug(ctx context.Context, nic NIC, i podnet.Interface, tap link.Tap) error {
	if err := link.ConfigureTap(ctx, w.guardOf(i), tap); err != nil {
		return err
	}
	if err := w.Ports.Plug(ctx, tapPort(nic, i, tap)); err != nil {
		return NotYet(err)
	}
	limited, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	if err := w.Ports.AwaitInstalled(limited, tap.Name); err != nil {
		return NotYet(err)
	}
	return nil
}

// Refresh implements Wirer: the tap of a running guest is taken up again. Its port is plugged anew if Open vSwitch has lost it.
func (w *Taps) Refresh(ctx context.Context, nic NIC) (*Wired, error) {
	i, err := nic.uplink()
	if err != nil {
		return nil, err
	}
	tap := tapOf(nic, i)
	stands, err := link.TapStands(tap.Name)
	if err != nil {
		return nil, err
	}
	if !stands {
		return nil, fmt.Errorf("interface %q: the guest's tap %s is gone; restart the VM", nic.Interface.Name, tap.Name)
	}
	if err := link.ConfigureTap(ctx, w.guardOf(i), tap); err != nil {
		return nil, err
	}
	if err := w.Ports.Plug(ctx, tapPort(nic, i, tap)); err != nil {
		return nil, err
	}
	return w.wired(nic, i), nil
}

// Leave implements Leaver.
func (w *Taps) Leave(ctx context.Context, nic NIC) error {
	return w.Ports.Unplug(ctx, tapName(nic))
}

// guardOf guards a tap. On a network that gives no addresses a guest may be the router.
func (w *Taps) guardOf(i podnet.Interface) link.Guard {
	if len(i.IPs) == 0 {
		return link.MayRoute(w.Guard)
	}
	return w.Guard
}

func (w *Taps) wired(nic NIC, i podnet.Interface) *Wired {
	wired := &Wired{MAC: i.MAC, MTU: i.MTU, Offloads: w.Guard.PartialChecksums(), PodInterface: i.Name}
	if nic.Interface.MacAddress != "" {
		wired.MAC = nic.MAC
	}
	wired.Tap = neighbours.Tap{Netns: netns.Own, Device: tapName(nic), MAC: wired.MAC}
	// While a guest is on its way, its port is on both nodes: this one has heard half of its connections and takes what follows for forged.
	wired.Arrived = func(ctx context.Context) error { return w.Ports.ForgetConnections(ctx, tapName(nic)) }
	for _, ip := range i.IPs {
		wired.IPs = append(wired.IPs, ip.Addr())
	}
	if w.Dial != nil && len(wired.IPs) > 0 && len(i.Gateways) > 0 {
		wired.Dial = func(ctx context.Context, proto string, port uint16) (net.Conn, error) {
			return dialEach(wired.IPs, func(ip netip.Addr) (net.Conn, error) { return w.Dial(ctx, i, proto, netip.AddrPortFrom(ip, port)) })
		}
	}
	return wired
}

func tapOf(nic NIC, i podnet.Interface) link.Tap {
	return link.Tap{
		Name: tapName(nic), MTU: i.MTU, Queues: nic.Queues,
		Alias: nic.VMI.Namespace + "/" + nic.VMI.Name + " " + nic.Interface.Name,
	}
}

// tapName is the same for every attempt, so that a new agent finds the tap of a running guest.
func tapName(nic NIC) string {
	return link.Name(link.TapPrefix, string(nic.Pod.UID), nic.Interface.Name)
}

// tapPort has no version: the port outlives the pod, and which node has it is OVN's decision.
func tapPort(nic NIC, i podnet.Interface, tap link.Tap) ovs.Port {
	ips := ""
	for n, ip := range i.IPs {
		if n > 0 {
			ips += ","
		}
		ips += ip.String()
	}
	return ovs.Port{
		Name: tap.Name, Logical: i.Port, Owner: podnet.TapOwner(nic.Pod.UID) + nic.Interface.Name,
		Info: map[string]string{"attached_mac": i.MAC.String(), "ip_addresses": ips, "vm": nic.VMI.Namespace + "/" + nic.VMI.Name,
			"k8s.ovn.org/network": i.Network, "k8s.ovn.org/nad": i.Attachment},
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
