package attachment

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"
)

const (
	// AddressesAnnotation is where a machine wishes addresses: a JSON object of lists by interface.
	AddressesAnnotation = "network.kubevirt.io/addresses"
	// DefaultNetworkAnnotation names the definition of the network that a pod gets instead of the cluster's default one, or asks for
	// addresses on its primary network. On the pods of machines it is Patchbay's.
	DefaultNetworkAnnotation = "v1.multus-cni.io/default-network"
	// ClaimAnnotation is the older way in which a pod asks for a claim's addresses on its primary network.
	ClaimAnnotation = "k8s.ovn.org/primary-udn-ipamclaim"
)

// ListedDefault reads the annotation in its long form: a list of one network in JSON, of which each reader takes the fields that it
// needs. The short form, which is not listed, is the name of a definition.
func ListedDefault[Element any](annotations map[string]string) (asked Element, listed bool, err error) {
	text := strings.TrimSpace(annotations[DefaultNetworkAnnotation])
	if !strings.HasPrefix(text, "[") {
		return asked, false, nil
	}
	var list []Element
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return asked, true, fmt.Errorf("annotation %s is not a list of networks in JSON: %w", DefaultNetworkAnnotation, err)
	}
	if len(list) != 1 {
		return asked, true, fmt.Errorf("annotation %s lists %d networks; want one", DefaultNetworkAnnotation, len(list))
	}
	return list[0], true, nil
}

// Request is what a machine's pod asks of the overlay for one NIC.
type Request struct {
	Claim     string         // name of the IPAMClaim that keeps the addresses; empty: none
	Primary   bool           // the NIC is on the namespace's primary network
	Addresses []netip.Prefix // wished, with the length of their subnets
	MAC       string         // wished
}

// ErrAwaited says that something is not there yet that is on its way.
var ErrAwaited = errors.New("is awaited")

// Requests are what the machine's pod asks for, by the network's name in the machine. No pod may be made on an error: it would
// get addresses that nobody keeps, or others than it was promised.
func (f Facts) Requests(vmi *virtv1.VirtualMachineInstance) (map[string]Request, error) {
	wishes, err := Wishes(vmi.Annotations)
	if err != nil {
		return nil, err
	}
	attachments, err := f.Attachments(vmi)
	if err != nil {
		return nil, err
	}
	requests := map[string]Request{}
	for _, a := range attachments {
		r := Request{Primary: a.Primary(), MAC: a.MAC}
		if r.Primary {
			if err := UsersOwn(vmi.Annotations); err != nil {
				return nil, err
			}
		}
		if r.Claim, err = f.claim(vmi, a); err != nil {
			return nil, err
		}
		if r.Addresses, err = a.wished(wishes[a.Name]); err != nil {
			return nil, err
		}
		requests[a.Name] = r
	}
	return requests, nil
}

// UsersOwn refuses a machine whose user asks for what Patchbay asks for in his name.
func UsersOwn(annotations map[string]string) error {
	if _, set := annotations[DefaultNetworkAnnotation]; !set {
		return nil
	}
	return fmt.Errorf("annotation %s must not be set on virtual machines in a namespace with a primary user-defined network; "+
		"wish addresses with annotation %s and a MAC with the interface's macAddress", DefaultNetworkAnnotation, AddressesAnnotation)
}

func (f Facts) claim(vmi *virtv1.VirtualMachineInstance, a Attachment) (string, error) {
	if !a.Network.Persistent {
		return "", nil
	}
	wanted := Claim(vmi, a)
	existing, ok := f.Claims[wanted.Name]
	if !ok || existing.DeletionTimestamp != nil || existing.Spec.Network != wanted.Spec.Network {
		return "", fmt.Errorf("IPAMClaim %s/%s %w", vmi.Namespace, wanted.Name, ErrAwaited)
	}
	return wanted.Name, Owned(existing, wanted)
}

// Wishes reads the addresses that a machine's annotations wish, by interface.
func Wishes(annotations map[string]string) (map[string][]netip.Addr, error) {
	text, ok := annotations[AddressesAnnotation]
	if !ok {
		return nil, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(text), &lists); err != nil {
		return nil, fmt.Errorf(`annotation %s is not a JSON object of lists, such as {"default": ["10.20.0.100"]}: %w`, AddressesAnnotation, err)
	}
	wishes := map[string][]netip.Addr{}
	for nic, list := range lists {
		for _, item := range list {
			address, err := parseAddress(item)
			if err != nil {
				return nil, fmt.Errorf("annotation %s: interface %s: %q is not an IP address", AddressesAnnotation, nic, item)
			}
			wishes[nic] = append(wishes[nic], address)
		}
	}
	return wishes, nil
}

// parseAddress takes the address of an "address/length" too; the length is that of the subnet.
func parseAddress(text string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(text)
}

// wished gives the wished addresses the lengths of their subnets.
func (a Attachment) wished(addresses []netip.Addr) ([]netip.Prefix, error) {
	if len(addresses) == 0 {
		return nil, nil
	}
	if !a.Primary() {
		return nil, fmt.Errorf("annotation %s: interface %s: static addresses are only supported on primary networks", AddressesAnnotation, a.Name)
	}
	if len(addresses) != len(a.Network.Subnets) {
		return nil, errors.New("requested IPs family types must match network's IP family configuration")
	}
	var prefixes []netip.Prefix
	for _, subnet := range a.Network.Subnets {
		i := slices.IndexFunc(addresses, func(ip netip.Addr) bool { return ip.Is4() == subnet.CIDR.Addr().Is4() })
		if i < 0 {
			return nil, errors.New("requested IPs family types must match network's IP family configuration")
		}
		if !subnet.CIDR.Contains(addresses[i]) {
			return nil, fmt.Errorf("annotation %s: interface %s: %s is not in the network's subnet %s", AddressesAnnotation, a.Name, addresses[i], subnet.CIDR)
		}
		prefixes = append(prefixes, netip.PrefixFrom(addresses[i], subnet.CIDR.Bits()))
	}
	return prefixes, nil
}
