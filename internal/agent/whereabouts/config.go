package whereabouts

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
)

// settings is a checked configuration: what a network says of its addresses.
type settings struct {
	version string // of CNI, that the answer is given in
	network string // network_name: pools with different ones have nothing to do with each other
	ranges  []span
	gateway netip.Addr // invalid when there is none
	fixed   []fixed    // addresses that every pod gets
	routes  []*cnitypes.Route
	dns     cnitypes.DNS
	// across says that an address is taken once over all pools of the same network_name.
	across bool
}

// span is one range: addresses from first to last of a subnet, without those that are left out.
type span struct {
	subnet      netip.Prefix
	first, last netip.Addr
	leftOut     []netip.Prefix
}

type fixed struct {
	address netip.Prefix
	gateway netip.Addr
}

// plain is the part of a CNI configuration that is ours, as published. Keys about the store and the log of the published program have no
// meaning here and are not read.
type plain struct {
	CNIVersion string `json:"cniVersion"`
	IPAM       struct {
		Type string `json:"type"`
		plainRange
		Ranges    []plainRange      `json:"ipRanges"`
		Gateway   string            `json:"gateway"`
		Routes    []*cnitypes.Route `json:"routes"`
		DNS       cnitypes.DNS      `json:"dns"`
		Network   string            `json:"network_name"`
		Slices    string            `json:"node_slice_size"`
		Across    *bool             `json:"enable_overlapping_ranges"`
		Addresses []struct {
			Address string `json:"address"`
			Gateway string `json:"gateway"`
		} `json:"addresses"`
	} `json:"ipam"`
}

type plainRange struct {
	Range   string   `json:"range"`
	First   string   `json:"range_start"`
	Last    string   `json:"range_end"`
	Exclude []string `json:"exclude"`
}

// parse reads the configuration of the plugin that asks for addresses.
func parse(config []byte) (settings, error) {
	var p plain
	if err := json.Unmarshal(config, &p); err != nil {
		return settings{}, fmt.Errorf("ipam: %w", err)
	}
	s := settings{version: p.CNIVersion, network: p.IPAM.Network, routes: p.IPAM.Routes, dns: p.IPAM.DNS, across: p.IPAM.Across == nil || *p.IPAM.Across}
	if p.IPAM.Slices != "" {
		return s, fmt.Errorf("ipam: node_slice_size is not served; leave it out, the pool of the whole range serves all nodes")
	}
	ranges := p.IPAM.Ranges
	if p.IPAM.Range != "" {
		ranges = append([]plainRange{p.IPAM.plainRange}, ranges...)
	}
	if len(ranges) == 0 && len(p.IPAM.Addresses) == 0 {
		return s, fmt.Errorf(`ipam: no range; write one as "range": "10.200.5.0/24"`)
	}
	var err error
	if p.IPAM.Gateway != "" {
		if s.gateway, err = netip.ParseAddr(p.IPAM.Gateway); err != nil {
			return s, fmt.Errorf("ipam: gateway: %w", err)
		}
	}
	for _, r := range ranges {
		one, err := r.parse()
		if err != nil {
			return s, fmt.Errorf("ipam: range %q: %w", r.Range, err)
		}
		s.ranges = append(s.ranges, one)
	}
	for _, a := range p.IPAM.Addresses {
		var f fixed
		if f.address, err = netip.ParsePrefix(a.Address); err != nil {
			return s, fmt.Errorf("ipam: addresses: %w", err)
		}
		if a.Gateway != "" {
			if f.gateway, err = netip.ParseAddr(a.Gateway); err != nil {
				return s, fmt.Errorf("ipam: addresses: %w", err)
			}
		}
		s.fixed = append(s.fixed, f)
	}
	return s, nil
}

// parse checks one range. It is a subnet, or FIRST-LAST/LENGTH.
func (r plainRange) parse() (span, error) {
	first, text := r.First, r.Range
	last := r.Last
	if from, rest, ok := strings.Cut(r.Range, "-"); ok {
		first, text = strings.TrimSpace(from), strings.TrimSpace(rest)
		last, _, _ = strings.Cut(text, "/")
	}
	subnet, err := netip.ParsePrefix(text)
	if err != nil {
		return span{}, fmt.Errorf("is not a subnet such as 10.200.5.0/24")
	}
	s := span{subnet: subnet.Masked()}
	s.first, s.last = usable(s.subnet)
	if s.first, err = r.bound("range_start", first, s.subnet, s.first); err != nil {
		return s, err
	}
	if s.last, err = r.bound("range_end", last, s.subnet, s.last); err != nil {
		return s, err
	}
	if s.last.Less(s.first) {
		return s, fmt.Errorf("its end %s lies before its start %s", s.last, s.first)
	}
	for _, text := range r.Exclude {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, bad := netip.ParseAddr(text)
			if bad != nil {
				return s, fmt.Errorf("exclude: %q is neither an address nor a subnet", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		s.leftOut = append(s.leftOut, p.Masked())
	}
	return s, nil
}

// bound reads one end of a range. The subnet's own address and its last, which nobody can have, mean what is next to them.
func (r plainRange) bound(key, text string, subnet netip.Prefix, otherwise netip.Addr) (netip.Addr, error) {
	if text == "" {
		return otherwise, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("%s: %w", key, err)
	}
	if !subnet.Contains(a) {
		return a, fmt.Errorf("%s %s is outside of %s", key, a, subnet)
	}
	low, high := usable(subnet)
	switch {
	case a.Less(low):
		return low, nil
	case high.Less(a):
		return high, nil
	}
	return a, nil
}

// usable are the first and the last address of a subnet that somebody can have.
func usable(subnet netip.Prefix) (first, last netip.Addr) {
	first, last = subnet.Masked().Addr(), lastOf(subnet)
	if subnet.Addr().BitLen()-subnet.Bits() > 1 {
		return first.Next(), last.Prev()
	}
	return first, last
}

func lastOf(subnet netip.Prefix) netip.Addr {
	bytes := subnet.Masked().Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}
