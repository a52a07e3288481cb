package cni

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	nadutils "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/utils"

	"patchbay/internal/agent/delegate"
	"patchbay/internal/podnetworks"
)

// Wanted is everything that a pod is to be connected to.
type Wanted struct {
	Pod        PodRef
	Given      map[string]podnetworks.Network // what the network controller gave, by the key of the attachment
	Default    *Selection                     // what the pod names as its default network, if not the cluster's; see ParseDefault
	Selections []Selection                    // what the pod asks for beside its default and primary network
}

// Selection is one network that a pod asks for.
type Selection struct {
	Key       string // of Wanted.Given: NAMESPACE/NAD, with /1, /2 … for the second and further attachments
	Network   string // NAMESPACE/NAD
	Interface string // in the pod
	Element   nadv1.NetworkSelectionElement
}

// ParseSelections reads the pod's annotation k8s.v1.cni.cncf.io/networks.
func ParseSelections(annotations map[string]string, namespace string) ([]Selection, error) {
	text := annotations[nadv1.NetworkAttachmentAnnot]
	if text == "" {
		return nil, nil
	}
	elements, err := nadutils.ParseNetworkAnnotation(text, namespace)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", nadv1.NetworkAttachmentAnnot, err)
	}
	var all []Selection
	seen := map[string]int{}
	for n, e := range elements {
		network := e.Namespace + "/" + e.Name
		s := Selection{Key: network, Network: network, Interface: e.InterfaceRequest, Element: *e}
		if again := seen[network]; again > 0 {
			s.Key += "/" + strconv.Itoa(again)
		}
		seen[network]++
		if s.Interface == "" {
			s.Interface = fmt.Sprintf("net%d", n+1)
		}
		all = append(all, s)
	}
	return all, nil
}

// gateways are the default routes that a selection asks for.
func (s Selection) gateways() []netip.Addr {
	var all []netip.Addr
	for _, ip := range s.Element.GatewayRequest {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// request is what another plugin is asked for.
func (s Selection) request() delegate.Request {
	e := s.Element
	r := delegate.Request{MAC: e.MacRequest, IPs: e.IPRequest, InfinibandGUID: e.InfinibandGUIDRequest}
	if len(e.PortMappingsRequest) > 0 {
		r.PortMappings = e.PortMappingsRequest
	}
	if e.BandwidthRequest != nil {
		r.Bandwidth = e.BandwidthRequest
	}
	if e.CNIArgs != nil {
		r.Args = maps.Clone(*e.CNIArgs)
	}
	return r
}

// primaries are the keys of what the pod gets without asking: the default network and its namespace's own.
func primaries(given map[string]podnetworks.Network) []string {
	keys := []string{podnetworks.Default}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if key != podnetworks.Default && given[key].Role == podnetworks.Primary {
			keys = append(keys, key)
		}
	}
	return keys
}
