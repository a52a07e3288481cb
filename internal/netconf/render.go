package netconf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"patchbay/internal/podnetworks"
)

// Version is the CNI version that rendered configurations speak.
const Version = "1.1.0"

// rendered is the configuration's shape, in the order in which it is published. Lists are joined by commas.
type rendered struct {
	CNIVersion         string   `json:"cniVersion"`
	Type               string   `json:"type"`
	Name               string   `json:"name"`
	Definition         string   `json:"netAttachDefName"`
	Topology           Topology `json:"topology"`
	Role               string   `json:"role,omitempty"`
	MTU                int      `json:"mtu,omitempty"`
	Subnets            string   `json:"subnets,omitempty"`
	JoinSubnet         string   `json:"joinSubnet,omitempty"`
	TransitSubnet      string   `json:"transitSubnet,omitempty"`
	AllowPersistentIPs bool     `json:"allowPersistentIPs,omitempty"`
	Reserved           string   `json:"reservedSubnets,omitempty"`
	Infrastructure     string   `json:"infrastructureSubnets,omitempty"`
	Gateways           string   `json:"defaultGatewayIPs,omitempty"`
	Physical           string   `json:"physicalNetworkName,omitempty"`
	Excluded           string   `json:"excludeSubnets,omitempty"`
	VLAN               int      `json:"vlanID,omitempty"`
}

// Render writes the configuration of a definition that attaches to the network.
func Render(n Network, namespace, definition string) (string, error) {
	text, err := json.Marshal(rendered{
		CNIVersion:         Version,
		Type:               Type,
		Name:               n.Name,
		Definition:         namespace + "/" + definition,
		Topology:           n.Topology,
		Role:               string(n.Role),
		MTU:                n.MTU,
		Subnets:            joined(n.Subnets),
		JoinSubnet:         joined(n.Join),
		TransitSubnet:      joined(n.Transit),
		AllowPersistentIPs: n.Persistent,
		Reserved:           joined(n.Reserved),
		Infrastructure:     joined(n.Infrastructure),
		Gateways:           joined(n.Gateways),
		Physical:           n.Physical,
		Excluded:           joined(n.Excluded),
		VLAN:               n.VLAN,
	})
	if err != nil {
		return "", fmt.Errorf("write the configuration of network %s: %w", n.Name, err)
	}
	return string(text), nil
}

// String is the subnet as configurations write it: 10.0.0.0/16, or 10.0.0.0/16/24 when nodes get slices of it.
func (s Subnet) String() string {
	if s.HostBits == 0 {
		return s.CIDR.String()
	}
	return s.CIDR.String() + "/" + strconv.Itoa(s.HostBits)
}

func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, item := range list {
		texts[i] = item.String()
	}
	return strings.Join(texts, ",")
}

// defaultTransit is between the routers of a primary layer2 network; it is never seen outside the network.
var defaultTransit = []netip.Prefix{netip.MustParsePrefix("100.88.0.0/16"), netip.MustParsePrefix("fd97::/64")}

// transitTries is how many blocks are looked at for a transit range.
const transitTries = 10

// transit picks for each family the first block, from the default one on, that the network does not use itself.
func transit(n Network) ([]netip.Prefix, error) {
	used := append([]netip.Prefix{}, n.Join...)
	for _, s := range n.Subnets {
		used = append(used, s.CIDR)
	}
	var chosen []netip.Prefix
	for _, block := range defaultTransit {
		free, err := freeBlock(block, used)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, free)
	}
	return chosen, nil
}

func freeBlock(first netip.Prefix, used []netip.Prefix) (netip.Prefix, error) {
	block := first
	for range transitTries {
		if !overlapsAny(block, used) {
			return block, nil
		}
		block = nextBlock(block)
	}
	return netip.Prefix{}, fmt.Errorf("no transit subnet is free in %d blocks from %s on; choose smaller subnets", transitTries, first)
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

// nextBlock is the block of the same size behind p.
func nextBlock(p netip.Prefix) netip.Prefix {
	bytes := p.Masked().Addr().AsSlice()
	step := 1 << (7 - (p.Bits()-1)%8)
	for i := (p.Bits() - 1) / 8; i >= 0 && step != 0; i-- {
		sum := int(bytes[i]) + step
		bytes[i], step = byte(sum), sum>>8
	}
	next, _ := netip.AddrFromSlice(bytes)
	return netip.PrefixFrom(next, p.Bits())
}

// withDefaults fills in what nobody asked for.
func (n Network) withDefaults() (Network, error) {
	n.fill()
	if n.Role != podnetworks.Primary || n.Topology != Layer2 {
		return n, nil
	}
	var err error
	n.Transit, err = transit(n)
	return n, err
}
