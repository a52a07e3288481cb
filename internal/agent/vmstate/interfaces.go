package vmstate

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qga"
)

// Where what is known of an interface comes from; status.interfaces[].infoSource lists these.
const (
	fromDomain = "domain"
	fromAgent  = "guest-agent"
	fromMultus = "multus-status"
	// fromTraffic is not one of the published sources. It stands only where nothing else tells an address.
	fromTraffic = "observed"
)

// maxGuestOnly limits interfaces that only the guest knows: a container host has hundreds.
const maxGuestOnly = 10

// interfaces is the wanted status.interfaces: the machine's NICs in the order of its specification, with the addresses that the
// network gave; the guest agent adds to that and never takes away. Interfaces of the pod network come first (printer columns and
// clients look at the first), then the others, then those that only the guest knows.
func interfaces(vmi *virtv1.VirtualMachineInstance, d *Domain) []virtv1.VirtualMachineInstanceNetworkInterface {
	before := map[string]virtv1.VirtualMachineInstanceNetworkInterface{}
	for _, i := range vmi.Status.Interfaces {
		if i.Name != "" {
			before[i.Name] = i
		}
	}
	var reported []qga.Interface
	if d.Guest != nil {
		reported = slices.Clone(d.Guest.Interfaces)
	}
	var all []virtv1.VirtualMachineInstanceNetworkInterface
	for _, nic := range inOrder(vmi, d.NICs) {
		seen := takeByMAC(&reported, nic.MAC)
		all = append(all, describeNIC(vmi, nic, seen, before[nic.Name]))
		delete(before, nic.Name)
	}
	all = append(all, onlyMultus(vmi, before)...)
	all = podNetworkFirst(vmi, all)
	return append(all, guestOnly(reported)...)
}

// inOrder puts NICs in the order of the specification: those that were plugged later stand at their place too.
func inOrder(vmi *virtv1.VirtualMachineInstance, nics []NIC) []NIC {
	place := map[string]int{}
	for n, i := range vmi.Spec.Domain.Devices.Interfaces {
		place[i.Name] = n - len(vmi.Spec.Domain.Devices.Interfaces)
	}
	nics = slices.Clone(nics)
	slices.SortStableFunc(nics, func(a, b NIC) int { return place[a.Name] - place[b.Name] })
	return nics
}

func describeNIC(vmi *virtv1.VirtualMachineInstance, nic NIC, seen *qga.Interface, before virtv1.VirtualMachineInstanceNetworkInterface) virtv1.VirtualMachineInstanceNetworkInterface {
	i := virtv1.VirtualMachineInstanceNetworkInterface{
		Name:             nic.Name,
		MAC:              nic.MAC.String(),
		PodInterfaceName: before.PodInterfaceName,
		QueueCount:       int32(nic.Queues),
		LinkState:        string(virtv1.InterfaceStateLinkUp),
	}
	if nic.PodInterface != "" {
		i.PodInterfaceName = nic.PodInterface
	}
	if nic.LinkDown {
		i.LinkState = string(virtv1.InterfaceStateLinkDown)
	}
	sources := []string{fromDomain}
	var theirs []netip.Addr
	if seen != nil {
		i.InterfaceName = seen.Name
		sources = append(sources, fromAgent)
		theirs = addresses(*seen, isMasquerade(vmi, nic.Name))
	}
	if hasSource(before, fromMultus) {
		sources = append(sources, fromMultus)
	}
	known := merge(nic.IPs, theirs)
	all := merge(known, nic.Observed)
	if len(all) > len(known) {
		sources = append(sources, fromTraffic)
	}
	i.InfoSource = strings.Join(sources, ", ")
	setIPs(&i, all)
	return i
}

// merge keeps the network's addresses of each family and takes the guest's word on families that the network says nothing of.
func merge(ours, theirs []netip.Addr) []netip.Addr {
	if len(theirs) == 0 {
		return ours
	}
	merged := slices.Clone(ours)
	for _, a := range theirs {
		if !slices.ContainsFunc(ours, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			merged = append(merged, a)
		}
	}
	slices.SortStableFunc(merged, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return merged
}

// addresses are those that the guest has on an interface. Behind a masquerade its link-local ones mean nothing to anybody else.
func addresses(i qga.Interface, masqueraded bool) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range i.Addresses {
		addr, err := netip.ParseAddr(a.IP)
		if err != nil || masqueraded && addr.IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, addr.WithZone(""))
	}
	return addrs
}

func setIPs(i *virtv1.VirtualMachineInstanceNetworkInterface, addrs []netip.Addr) {
	for _, a := range addrs {
		i.IPs = append(i.IPs, a.String())
	}
	if len(i.IPs) > 0 {
		i.IP = i.IPs[0]
	}
}

// takeByMAC finds the guest's interface with the MAC address and takes it from the list.
func takeByMAC(list *[]qga.Interface, mac net.HardwareAddr) *qga.Interface {
	for n, i := range *list {
		parsed, err := net.ParseMAC(i.MAC)
		if err == nil && bytes.Equal(parsed, mac) {
			*list = slices.Delete(*list, n, n+1)
			return &i
		}
	}
	return nil
}

// guestOnly are the interfaces that are not the machine's: bonds, bridges, tunnels of the guest.
func guestOnly(reported []qga.Interface) []virtv1.VirtualMachineInstanceNetworkInterface {
	var all []virtv1.VirtualMachineInstanceNetworkInterface
	for _, r := range reported {
		if r.Name == "lo" || len(all) == maxGuestOnly {
			continue
		}
		i := virtv1.VirtualMachineInstanceNetworkInterface{InterfaceName: r.Name, MAC: r.MAC, InfoSource: fromAgent}
		setIPs(&i, addresses(r, false))
		all = append(all, i)
	}
	return all
}

// onlyMultus keeps interfaces that the controller found in the pod and that are not in the machine: to be plugged, or just unplugged.
func onlyMultus(vmi *virtv1.VirtualMachineInstance, before map[string]virtv1.VirtualMachineInstanceNetworkInterface) []virtv1.VirtualMachineInstanceNetworkInterface {
	var all []virtv1.VirtualMachineInstanceNetworkInterface
	for _, n := range vmi.Spec.Networks {
		i, ok := before[n.Name]
		if !ok {
			continue
		}
		if n.Pod == nil && !hasSource(i, fromMultus) {
			continue
		}
		kept := virtv1.VirtualMachineInstanceNetworkInterface{Name: i.Name, PodInterfaceName: i.PodInterfaceName}
		if hasSource(i, fromMultus) {
			kept.InfoSource = fromMultus
		}
		all = append(all, kept)
	}
	return all
}

func podNetworkFirst(vmi *virtv1.VirtualMachineInstance, all []virtv1.VirtualMachineInstanceNetworkInterface) []virtv1.VirtualMachineInstanceNetworkInterface {
	isPod := func(i virtv1.VirtualMachineInstanceNetworkInterface) bool {
		return slices.ContainsFunc(vmi.Spec.Networks, func(n virtv1.Network) bool { return n.Pod != nil && n.Name == i.Name })
	}
	slices.SortStableFunc(all, func(a, b virtv1.VirtualMachineInstanceNetworkInterface) int {
		switch {
		case isPod(a) == isPod(b):
			return 0
		case isPod(a):
			return -1
		default:
			return 1
		}
	})
	return all
}

func hasSource(i virtv1.VirtualMachineInstanceNetworkInterface, source string) bool {
	return slices.Contains(strings.Split(i.InfoSource, ", "), source)
}

func isMasquerade(vmi *virtv1.VirtualMachineInstance, name string) bool {
	return slices.ContainsFunc(vmi.Spec.Domain.Devices.Interfaces, func(i virtv1.Interface) bool { return i.Name == name && i.Masquerade != nil })
}
