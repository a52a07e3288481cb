// Package netconfig reads the network configuration that a cloud-init seed carries (version 1, version 2, or OpenStack's
// network_data.json) into one plain form. It is pure: it must not look at the machine's own interfaces.
package netconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"

	"sigs.k8s.io/yaml"
)

// Config is what a seed asks for.
type Config struct {
	NICs   []NIC
	DNS    []netip.Addr // for the whole machine, besides those of a NIC
	Search []string
}

// NIC is what one interface shall have.
type NIC struct {
	Name      string           // kernel name, or a pattern such as eth*; empty: any
	MAC       net.HardwareAddr // nil: any
	SetName   string           // rename the interface to this
	VLAN      *VLAN            // the interface is a VLAN on another one, to be made
	MTU       int              // 0: as the network says
	DHCP4     bool
	DHCP6     Choice // Auto: when router advertisements ask for it
	AcceptRA  Choice // Auto: yes
	Addresses []netip.Prefix
	Routes    []Route
	DNS       []netip.Addr
	Search    []string
	Metric    int  // of routes that DHCP brings; 0: by the interface's position
	NoRoutes  bool // leave out the routes that DHCP brings
	NoDNS     bool // leave out the name servers that DHCP brings
}

// VLAN is an 802.1Q interface's link and number.
type VLAN struct {
	Link string
	ID   int
}

// Route is one static route.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // invalid: on the link
	Metric int
	OnLink bool // the gateway is reachable although no address says so
}

// Choice is yes, no, or left open.
type Choice string

// The values of Choice.
const (
	Auto Choice = ""
	Yes  Choice = "yes"
	No   Choice = "no"
)

func choose(b *bool) Choice {
	switch {
	case b == nil:
		return Auto
	case *b:
		return Yes
	}
	return No
}

// Default is the configuration of an interface that no seed mentions: everything by DHCP and router advertisements.
func Default() NIC { return NIC{DHCP4: true} }

// Find returns what the seed says about the interface with this name and address, or Default.
func (c Config) Find(name string, mac net.HardwareAddr) NIC {
	for _, n := range c.NICs {
		if n.VLAN == nil && n.matches(name, mac) {
			return n
		}
	}
	return Default()
}

func (n NIC) matches(name string, mac net.HardwareAddr) bool {
	if n.MAC != nil {
		return n.MAC.String() == mac.String()
	}
	if n.SetName != "" && n.SetName == name { // renamed already
		return true
	}
	ok, err := path.Match(n.Name, name)
	return n.Name == "" || err == nil && ok
}

// Parse reads any of the three forms.
func Parse(data []byte) (Config, error) {
	var head struct {
		Network json.RawMessage `json:"network"`
		Version int             `json:"version"`
		Links   json.RawMessage `json:"links"`
	}
	raw, err := yaml.YAMLToJSON(data)
	if err != nil {
		return Config{}, fmt.Errorf("network configuration is not YAML: %w", err)
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Config{}, fmt.Errorf("network configuration: %w", err)
	}
	if head.Network != nil { // netplan and cloud-init both allow the outer key
		return Parse(head.Network)
	}
	switch {
	case head.Version == 1:
		return parseV1(raw)
	case head.Version == 2:
		return parseV2(raw)
	case head.Links != nil:
		return parseOpenStack(raw)
	}
	return Config{}, errors.New("network configuration has neither a version (1 or 2) nor OpenStack's links")
}

// parseAddress reads an address with or without a prefix length; mask is the netmask given beside it, if any.
func parseAddress(s, mask string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address", s)
	}
	if mask == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	bits, err := maskBits(mask)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, bits), nil
}

// maskBits reads a netmask: 255.255.255.0, ffff:ffff::, or 24.
func maskBits(mask string) (int, error) {
	if m, err := netip.ParseAddr(mask); err == nil {
		if ones, size := net.IPMask(m.AsSlice()).Size(); size > 0 {
			return ones, nil
		}
	}
	var bits int
	if _, err := fmt.Sscanf(mask, "%d", &bits); err != nil || bits < 0 || bits > 128 {
		return 0, fmt.Errorf("%q is not a netmask", mask)
	}
	return bits, nil
}

// defaultVia is the default route of the gateway's family.
func defaultVia(gateway netip.Addr) Route {
	if gateway.Is4() {
		return Route{To: netip.MustParsePrefix("0.0.0.0/0"), Via: gateway}
	}
	return Route{To: netip.MustParsePrefix("::/0"), Via: gateway}
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	return net.ParseMAC(s)
}
