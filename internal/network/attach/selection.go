package attach

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/tenancy/attachment"
)

// selection is one element of an annotation.
type selection struct {
	Name      string       `json:"name"`
	Namespace string       `json:"namespace"`
	Interface string       `json:"interface"`
	IPs       []string     `json:"ips"`
	MAC       string       `json:"mac"`
	Gateways  []netip.Addr `json:"default-route"`
	Claim     string       `json:"ipam-claim-reference"`
}

// parseSelections reads a JSON list, or "namespace/name@interface" with commas between.
func parseSelections(text, namespace string) ([]selection, error) {
	var list []selection
	switch {
	case strings.TrimSpace(text) == "":
		return nil, nil
	case strings.ContainsAny(text, "[{\""):
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, fmt.Errorf("annotation %s is not a list of networks in JSON: %w", nadv1.NetworkAttachmentAnnot, err)
		}
	default:
		for item := range strings.SplitSeq(text, ",") {
			list = append(list, parseShort(strings.TrimSpace(item)))
		}
	}
	for i := range list {
		if list[i].Namespace == "" {
			list[i].Namespace = namespace
		}
		if list[i].Name == "" || strings.Contains(list[i].Name, "/") {
			return nil, fmt.Errorf("annotation %s: element %d does not name a network attachment definition; write namespace/name", nadv1.NetworkAttachmentAnnot, i+1)
		}
	}
	return list, nil
}

func parseShort(item string) selection {
	var s selection
	item, s.Interface, _ = strings.Cut(item, "@")
	namespace, name, qualified := strings.Cut(item, "/")
	if !qualified {
		namespace, name = "", item
	}
	s.Namespace, s.Name = namespace, name
	return s
}

// defaultRequest is what the pod asks of its primary network. The annotation that carries it speaks of the default network; when
// it names another definition it means something else.
func (f Facts) defaultRequest() (selection, error) {
	request := selection{Claim: f.Pod.Annotations[attachment.ClaimAnnotation]}
	asked, listed, err := attachment.ListedDefault[selection](f.Pod.Annotations)
	if err != nil || !listed {
		return request, err
	}
	d, known := f.Networks.Definition(asked.Namespace + "/" + asked.Name)
	if known && !(d.Err == nil && d.Network.IsDefault()) || !known && asked.Name != podnetworks.Default {
		return request, nil
	}
	if asked.Claim == "" {
		asked.Claim = request.Claim
	}
	return asked, nil
}

func parseMAC(text string) (net.HardwareAddr, error) {
	if text == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return nil, fmt.Errorf("requested MAC address %q is not an address that one host can have, such as 02:00:00:00:00:11", text)
	}
	return mac, nil
}

// insideSubnets reads addresses, with or without a prefix length, and compares that with the subnets'.
func insideSubnets(texts []string, n netconf.Network) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		a, bits, err := parseAddress(text)
		if err != nil {
			return nil, err
		}
		for _, s := range n.Subnets {
			if s.CIDR.Contains(a) && bits >= 0 && bits != s.CIDR.Bits() {
				return nil, fmt.Errorf("requested address %s has another prefix length than subnet %s of network %s", text, s.CIDR, n.Name)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// parseAddress reads an address; bits is -1 without a prefix length.
func parseAddress(text string) (a netip.Addr, bits int, err error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr().Unmap(), p.Bits(), nil
	}
	if a, err = netip.ParseAddr(text); err != nil || a.Zone() != "" {
		return a, 0, fmt.Errorf("requested address %q is not an IP address", text)
	}
	return a.Unmap(), -1, nil
}

// machineAddresses are the addresses that a machine's annotation wishes for one of its interfaces.
func machineAddresses(vmi *virtv1.VirtualMachineInstance, nic string) ([]string, error) {
	text := vmi.Annotations[attachment.AddressesAnnotation]
	if text == "" {
		return nil, nil
	}
	var wishes map[string][]string
	if err := json.Unmarshal([]byte(text), &wishes); err != nil {
		return nil, fmt.Errorf("annotation %s is not a JSON object of lists of addresses: %w", attachment.AddressesAnnotation, err)
	}
	return wishes[nic], nil
}

// podNIC is the machine's interface on the pod network.
func (f Facts) podNIC() (virtv1.Interface, bool) {
	return f.nic(func(n virtv1.Network) bool { return n.Pod != nil })
}

// networkNIC is the machine's interface that a selection was written for.
func (f Facts) networkNIC(s selection) (virtv1.Interface, bool) {
	return f.nic(func(n virtv1.Network) bool {
		return n.Multus != nil && podnetworks.InterfaceName(n.Name) == s.Interface
	})
}

func (f Facts) nic(of func(virtv1.Network) bool) (virtv1.Interface, bool) {
	if f.VMI == nil {
		return virtv1.Interface{}, false
	}
	for _, n := range f.VMI.Spec.Networks {
		if !of(n) {
			continue
		}
		for _, nic := range f.VMI.Spec.Domain.Devices.Interfaces {
			if nic.Name == n.Name {
				return nic, true
			}
		}
	}
	return virtv1.Interface{}, false
}

// tap tells whether the guest itself takes the port.
func (f Facts) tap(nic virtv1.Interface) bool {
	return nic.Bridge != nil || nic.Binding != nil && f.ManagedTap(nic.Binding.Name)
}
