package vmstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qga"
)

// Sources are who says which addresses an interface has. status.interfaces shows what they come to.
type Sources struct {
	Interface string
	Network   []netip.Addr // gave them
	Agent     []netip.Addr // of the guest, with link-local ones
	Observed  []netip.Addr // that the guest was heard to use
	// Inner says that the guest's addresses are others than the network's, and are to be: behind a masquerade.
	Inner bool
}

// SourcesOf is what is known of the machine's interfaces, in the order of its specification.
func SourcesOf(vmi *virtv1.VirtualMachineInstance, d *Domain) []Sources {
	var reported []qga.Interface
	if d.Guest != nil {
		reported = slices.Clone(d.Guest.Interfaces)
	}
	all := []Sources{}
	for _, nic := range inOrder(vmi, d.NICs) {
		s := Sources{Interface: nic.Name, Network: nic.IPs, Observed: nic.Observed, Inner: isMasquerade(vmi, nic.Name)}
		if seen := takeByMAC(&reported, nic.MAC); seen != nil {
			s.Agent = addresses(*seen, false)
		}
		all = append(all, s)
	}
	return all
}

// Disagree says that two sources speak of one family of addresses and have none in common. One that says nothing, as while a guest
// boots, contradicts nobody; neither does a guest that uses more addresses than it was given.
func (s Sources) Disagree() bool {
	if s.Inner {
		return false
	}
	all := [][]netip.Addr{s.Network, s.Agent, s.Observed}
	for n, a := range all {
		for _, b := range all[n+1:] {
			if strangers(a, b, netip.Addr.Is4) || strangers(a, b, netip.Addr.Is6) {
				return true
			}
		}
	}
	return false
}

// strangers says that both lists have addresses of a family, and no common one.
func strangers(a, b []netip.Addr, family func(netip.Addr) bool) bool {
	of := func(list []netip.Addr) (all []netip.Addr) {
		for _, ip := range list {
			if family(ip) && !ip.IsLinkLocalUnicast() {
				all = append(all, ip)
			}
		}
		return all
	}
	a, b = of(a), of(b)
	return len(a) > 0 && len(b) > 0 && !slices.ContainsFunc(a, func(ip netip.Addr) bool { return slices.Contains(b, ip) })
}

func (s Sources) String() string {
	var parts []string
	for _, p := range []struct {
		says string
		list []netip.Addr
	}{{"the network gave", s.Network}, {"the guest agent says", s.Agent}, {"heard on the network", s.Observed}} {
		if text := listed(p.list); text != "" {
			parts = append(parts, p.says+" "+text)
		}
	}
	return fmt.Sprintf("interface %s: %s", s.Interface, strings.Join(parts, ", "))
}

// listed leaves link-local addresses out: every card has one.
func listed(list []netip.Addr) string {
	var words []string
	for _, ip := range list {
		if !ip.IsLinkLocalUnicast() {
			words = append(words, ip.String())
		}
	}
	return strings.Join(words, " ")
}

// conditionAddresses is not one of the published conditions. It stands while the sources of an interface's addresses contradict each other.
const conditionAddresses virtv1.VirtualMachineInstanceConditionType = "AddressesDisagree"

// describeSources says which interfaces' addresses are in doubt. An agent that has just come has not been asked yet: an earlier verdict stands.
func (s *step) describeSources() {
	d := s.o.Domain
	if d.Guest != nil && d.Guest.Interfaces == nil {
		return
	}
	var doubts []string
	for _, source := range SourcesOf(s.o.VMI, d) {
		if source.Disagree() {
			doubts = append(doubts, source.String())
		}
	}
	if len(doubts) == 0 {
		s.dropCondition(conditionAddresses)
		return
	}
	message := strings.Join(doubts, "; ")
	if !slices.ContainsFunc(s.r.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
		return c.Type == conditionAddresses && c.Message == message
	}) {
		s.tell(Event{Type: corev1.EventTypeWarning, Reason: reasonAddresses, Message: message})
	}
	s.setCondition(conditionAddresses, true, reasonAddresses, message)
}
