package vmdriver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/neighbours"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

// Names of bindings, for Config.Wirers. A binding plugin has its own name.
const (
	BindingMasquerade = "masquerade"
	BindingBridge     = "bridge"
	BindingL2Bridge   = "l2bridge" // and every other plugin of the attachment type managedTap
	BindingSRIOV      = "sriov"
	BindingPasst      = "passt"
)

// Wirer joins NICs of one binding to their networks.
type Wirer interface {
	// Open makes the NIC's tap, for a guest that does not run; what is left of an earlier attempt is replaced. Its error is
	// final, unless it is wrapped by NotYet.
	Open(context.Context, NIC) (*Wired, error)
	// Refresh brings up to date what surrounds the tap of a running guest, which must not notice.
	Refresh(context.Context, NIC) (*Wired, error)
}

// Leaver is a Wirer whose NICs leave something on the node when the guest has let them go.
type Leaver interface {
	// Leave takes a NIC off its network. It may be called any number of times.
	Leave(context.Context, NIC) error
}

// NIC is a network card to join to a network.
type NIC struct {
	VMI       *virtv1.VirtualMachineInstance
	Interface virtv1.Interface
	Network   virtv1.Network
	Pod       podnet.Pod
	MAC       net.HardwareAddr // of the guest, where the network has no wish
	Queues    int
	Hostname  string
	DNS       guestnet.DNS // the pod's
}

// Wired is a joined network card.
type Wired struct {
	Files []*os.File // the tap, one per queue; nil after Refresh
	Vhost []*os.File // kernel backends of the queues, as many as Files, or none
	// Passt is the process that takes the tap's place; nil: there is a tap.
	Passt    *protocol.Passt
	MAC      net.HardwareAddr
	MTU      int
	Offloads bool // the other side of the tap takes partial checksums and large segments
	// IPs are what the network gave, in the order of the cluster's families.
	IPs          []netip.Addr
	PodInterface string
	// Tap is where the guest can be heard, if its addresses may be others than IPs; its zero value: nowhere.
	Tap neighbours.Tap
	// Serve does what the guest needs while it runs, until the context ends; nil: nothing.
	Serve func(context.Context)
	// Dial connects to a port of the guest from the pod; nil: the pod has no way to it.
	Dial func(ctx context.Context, network string, port uint16) (net.Conn, error)
	// Arrived is called when the guest has come by migration and runs here; nil: nothing is to be done.
	Arrived func(context.Context) error
	// Close frees what Serve would have used, if it is never called; nil: nothing.
	Close func()
}

// NotYet says that a network is not ready: the start is tried again later.
func NotYet(err error) error { return &notYet{err} }

type notYet struct{ error }

func (n *notYet) Unwrap() error { return n.error }

// discard gives back what a wired NIC holds.
func (w *Wired) discard() {
	w.closeFiles()
	if w.Close != nil {
		w.Close()
	}
}

func (w *Wired) closeFiles() {
	for _, f := range slices.Concat(w.Files, w.Vhost) {
		f.Close()
	}
	w.Files, w.Vhost = nil, nil
}

func bindingOf(i virtv1.Interface) string {
	switch {
	case i.Binding != nil:
		return i.Binding.Name
	case i.Masquerade != nil:
		return BindingMasquerade
	case i.SRIOV != nil:
		return BindingSRIOV
	case i.PasstBinding != nil:
		return BindingPasst
	default:
		return BindingBridge
	}
}

// guestMAC is the MAC address of a NIC that asks for none. It follows from the instance's UID, so that it is the same for a new
// agent and after a migration.
func guestMAC(vmi *virtv1.VirtualMachineInstance, i virtv1.Interface) (net.HardwareAddr, error) {
	if i.MacAddress != "" {
		mac, err := net.ParseMAC(i.MacAddress)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %q is not a MAC address; write it as 02:00:00:ab:cd:ef", i.Name, i.MacAddress)
		}
		return mac, nil
	}
	sum := sha256.Sum256([]byte(string(vmi.UID) + "/" + i.Name))
	return net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}, nil
}

// queuesOf is how many queues a NIC gets: one per virtual CPU if the guest asked for it and its device can.
func queuesOf(vmi *virtv1.VirtualMachineInstance, i virtv1.Interface) int {
	wanted := vmi.Spec.Domain.Devices.NetworkInterfaceMultiQueue
	if wanted == nil || !*wanted || i.Model != "" && i.Model != virtv1.VirtIO || bindingOf(i) == BindingPasst {
		return 1
	}
	return min(vcpus(vmi), maxQueues)
}

const maxQueues = 256

// vcpus counts as package qemu does.
func vcpus(vmi *virtv1.VirtualMachineInstance) int {
	if c := vmi.Spec.Domain.CPU; c != nil && (c.Sockets != 0 || c.Cores != 0 || c.Threads != 0) {
		return int(max(c.Sockets, 1) * max(c.Cores, 1) * max(c.Threads, 1))
	}
	resources := vmi.Spec.Domain.Resources
	return int(max(1, cmp.Or(resources.Requests.Cpu().Value(), resources.Limits.Cpu().Value())))
}

// cards are the machine's network cards with their wiring, in the order of its specification.
type cards []card

type card struct {
	NIC
	*Wired
	stop func() // ends Serve and waits for it; nil: it was not started
}

// wire is Wirer.Open or Wirer.Refresh.
type wire func(Wirer, context.Context, NIC) (*Wired, error)

// join joins every NIC that is not absent.
func (d *Driver) join(ctx context.Context, vmi *virtv1.VirtualMachineInstance, pod podnet.Pod, dns guestnet.DNS, how wire) (all cards, err error) {
	defer func() {
		if err != nil {
			all.discard()
			all = nil
		}
	}()
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		if i.State == virtv1.InterfaceStateAbsent {
			continue
		}
		nic, err := newNIC(vmi, i, pod, dns)
		if err != nil {
			return all, final(err)
		}
		wirer, err := d.wirerOf(nic)
		if err != nil {
			return all, err
		}
		wired, err := how(wirer, ctx, nic)
		if err != nil {
			return all, err
		}
		all = append(all, card{NIC: nic, Wired: wired})
	}
	return all, nil
}

// attachment is the name of the attachment definition that the NIC was joined to; empty for the pod network.
func (n NIC) attachment() string {
	if n.Network.Multus == nil {
		return ""
	}
	return n.Network.Multus.NetworkName
}

// wirerOf chooses by what is at the other end, and then by the binding: a logical port that waits for a tap gets one.
func (d *Driver) wirerOf(nic NIC) (Wirer, error) {
	i, err := nic.uplink()
	switch {
	case err == nil && i.Tap && d.Taps != nil:
		return d.Taps, nil
	case err != nil && nic.Network.Multus != nil:
		return nil, err
	}
	wirer := d.Wirers[bindingOf(nic.Interface)]
	if wirer == nil && nic.Interface.Binding != nil && d.managedTap(nic.Interface.Binding.Name) {
		wirer = d.Wirers[BindingL2Bridge]
	}
	if wirer == nil {
		return nil, final(fmt.Errorf("interface %q: this node cannot wire the binding %q; use masquerade on the pod network or bridge on another",
			nic.Interface.Name, bindingOf(nic.Interface)))
	}
	return wirer, nil
}

// managedTap asks the cluster's KubeVirt whether a binding plugin is registered with that attachment type.
func (d *Driver) managedTap(plugin string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	var all virtv1.KubeVirtList
	if d.Live == nil || d.Live.List(ctx, &all) != nil {
		return false
	}
	for _, kv := range all.Items {
		if network := kv.Spec.Configuration.NetworkConfiguration; network != nil && network.Binding[plugin].DomainAttachmentType == virtv1.ManagedTap {
			return true
		}
	}
	return false
}

// OpenNIC joins one more NIC of a machine that runs in the pod to its network: the first half of plugging it in. The pod must be
// attached to the network already; the error is NotYet until it is. Give the files (Wired.Files) to the guest and close them, then run
// Wired.Serve while the guest has the NIC. When the guest cannot take it, close the files and call LeaveNIC.
//
// The target of a migration may do the same for every NIC before the guest arrives.
func (d *Driver) OpenNIC(ctx context.Context, vmi *virtv1.VirtualMachineInstance, i virtv1.Interface, pod podnet.Pod, dns guestnet.DNS) (NIC, *Wired, error) {
	nic, err := newNIC(vmi, i, pod, dns)
	if err != nil {
		return NIC{}, nil, final(err)
	}
	wirer, err := d.wirerOf(nic)
	if err != nil {
		return nic, nil, err
	}
	wired, err := wirer.Open(ctx, nic)
	return nic, wired, err
}

// LeaveNIC takes a NIC off its network, after the guest has let it go: the second half of unplugging it. What is forgotten here is
// cleaned up when the pod ends.
func (d *Driver) LeaveNIC(ctx context.Context, nic NIC) error {
	wirer, err := d.wirerOf(nic)
	if err != nil {
		wirer = d.Taps // the pod has left the network already; only a tap is not in the pod
	}
	if leaver, ok := wirer.(Leaver); ok {
		return leaver.Leave(ctx, nic)
	}
	return nil
}

func newNIC(vmi *virtv1.VirtualMachineInstance, i virtv1.Interface, pod podnet.Pod, dns guestnet.DNS) (NIC, error) {
	n := slices.IndexFunc(vmi.Spec.Networks, func(n virtv1.Network) bool { return n.Name == i.Name })
	if n < 0 {
		return NIC{}, fmt.Errorf("interface %q has no network of its name; add one to spec.networks", i.Name)
	}
	mac, err := guestMAC(vmi, i)
	if err != nil {
		return NIC{}, err
	}
	return NIC{
		VMI: vmi, Interface: i, Network: vmi.Spec.Networks[n], Pod: pod,
		MAC: mac, Queues: queuesOf(vmi, i), Hostname: hostname(vmi), DNS: dns,
	}, nil
}

func (all cards) discard() {
	for _, c := range all {
		c.discard()
	}
}

// plan is the cards as the command line needs them, with the descriptors in the order in which they are to be sent.
func (all cards) plan() (nics []qemu.NIC, files []*os.File) {
	for _, c := range all {
		nic := qemu.NIC{
			Name: c.Interface.Name, MAC: c.Wired.MAC, MTU: c.MTU, Offloads: c.Offloads,
			LinkDown: c.Interface.State == virtv1.InterfaceStateLinkDown,
		}
		add := func(opened []*os.File) (positions []int) {
			for _, f := range opened {
				positions = append(positions, len(files))
				files = append(files, f)
			}
			return positions
		}
		nic.FDs, nic.VhostFDs = add(c.Files), add(c.Vhost)
		if c.Passt != nil {
			nic.Socket = path.Join(protocol.RunDir, protocol.PasstName)
		}
		nics = append(nics, nic)
	}
	return nics, files
}

// passt is the process that one of the cards wants; only the pod network has such, and a machine joins it once.
func (all cards) passt() *protocol.Passt {
	for _, c := range all {
		if c.Passt != nil {
			return c.Passt
		}
	}
	return nil
}

// describe is the cards as the status needs them.
func (all cards) describe() []vmstate.NIC {
	nics := []vmstate.NIC{}
	for _, c := range all {
		nics = append(nics, vmstate.NIC{
			Name: c.Interface.Name, Network: c.attachment(), MAC: c.Wired.MAC, IPs: c.IPs, PodInterface: c.PodInterface, Queues: c.Queues,
			LinkDown: c.Interface.State == virtv1.InterfaceStateLinkDown,
		})
	}
	return nics
}
