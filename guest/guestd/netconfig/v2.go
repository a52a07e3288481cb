package netconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// The parts of netplan's format that a virtual machine's seed uses.
type v2Config struct {
	Ethernets map[string]v2NIC `json:"ethernets"`
	VLANs     map[string]v2NIC `json:"vlans"`
	Bonds     json.RawMessage  `json:"bonds"`
	Bridges   json.RawMessage  `json:"bridges"`
}

type v2NIC struct {
	Match struct {
		Name string `json:"name"`
		MAC  string `json:"macaddress"`
	} `json:"match"`
	SetName     string            `json:"set-name"`
	MTU         int               `json:"mtu"`
	DHCP4       bool              `json:"dhcp4"`
	DHCP6       *bool             `json:"dhcp6"`
	AcceptRA    *bool             `json:"accept-ra"`
	Addresses   []json.RawMessage `json:"addresses"`
	Gateway4    string            `json:"gateway4"`
	Gateway6    string            `json:"gateway6"`
	Routes      []v2Route         `json:"routes"`
	Nameservers struct {
		Addresses []netip.Addr `json:"addresses"`
		Search    []string     `json:"search"`
	} `json:"nameservers"`
	Overrides4 v2Overrides `json:"dhcp4-overrides"`
	ID         int         `json:"id"`   // VLANs
	Link       string      `json:"link"` // VLANs
}

type v2Route struct {
	To     string `json:"to"`
	Via    string `json:"via"`
	Metric int    `json:"metric"`
	OnLink bool   `json:"on-link"`
}

type v2Overrides struct {
	Metric    int   `json:"route-metric"`
	UseRoutes *bool `json:"use-routes"`
	UseDNS    *bool `json:"use-dns"`
}

func parseV2(raw []byte) (Config, error) {
	var in v2Config
	if err := json.Unmarshal(raw, &in); err != nil {
		return Config{}, fmt.Errorf("network configuration version 2: %w", err)
	}
	if in.Bonds != nil || in.Bridges != nil {
		return Config{}, fmt.Errorf("network configuration version 2: this guest makes no bonds and bridges; use ethernets and vlans")
	}
	var out Config
	for _, name := range slices.Sorted(maps.Keys(in.Ethernets)) {
		nic, err := in.Ethernets[name].nic(name)
		if err != nil {
			return Config{}, fmt.Errorf("ethernets.%s: %w", name, err)
		}
		out.NICs = append(out.NICs, nic)
	}
	for _, name := range slices.Sorted(maps.Keys(in.VLANs)) {
		nic, err := in.VLANs[name].nic(name)
		if err != nil {
			return Config{}, fmt.Errorf("vlans.%s: %w", name, err)
		}
		nic.VLAN = &VLAN{Link: in.VLANs[name].Link, ID: in.VLANs[name].ID}
		out.NICs = append(out.NICs, nic)
	}
	return out, nil
}

func (n v2NIC) nic(key string) (NIC, error) {
	mac, err := parseMAC(n.Match.MAC)
	if err != nil {
		return NIC{}, err
	}
	out := NIC{
		Name: key, MAC: mac, SetName: n.SetName, MTU: n.MTU,
		DHCP4: n.DHCP4, DHCP6: choose(n.DHCP6), AcceptRA: choose(n.AcceptRA),
		DNS: n.Nameservers.Addresses, Search: n.Nameservers.Search,
		Metric:   n.Overrides4.Metric,
		NoRoutes: choose(n.Overrides4.UseRoutes) == No, NoDNS: choose(n.Overrides4.UseDNS) == No,
	}
	if n.Match.Name != "" || mac != nil { // with a match the key is only a label
		out.Name = n.Match.Name
	}
	for _, a := range n.Addresses {
		p, err := v2Address(a)
		if err != nil {
			return NIC{}, err
		}
		out.Addresses = append(out.Addresses, p)
	}
	out.Routes, err = n.routes()
	return out, err
}

// v2Address reads "10.0.0.2/24", or the form with options {"10.0.0.2/24": {...}}, whose options are ignored.
func v2Address(raw json.RawMessage) (netip.Prefix, error) {
	var plain string
	if json.Unmarshal(raw, &plain) == nil {
		return parseAddress(plain, "")
	}
	var options map[string]json.RawMessage
	if err := json.Unmarshal(raw, &options); err != nil {
		return netip.Prefix{}, err
	}
	for a := range options {
		return parseAddress(a, "")
	}
	return netip.Prefix{}, fmt.Errorf("an address is empty")
}

func (n v2NIC) routes() ([]Route, error) {
	var out []Route
	for _, g := range []string{n.Gateway4, n.Gateway6} {
		if g == "" {
			continue
		}
		via, err := netip.ParseAddr(g)
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		out = append(out, defaultVia(via))
	}
	for _, r := range n.Routes {
		route, err := r.route()
		if err != nil {
			return nil, err
		}
		out = append(out, route)
	}
	return out, nil
}

func (r v2Route) route() (Route, error) {
	out := Route{Metric: r.Metric, OnLink: r.OnLink}
	var err error
	if r.Via != "" {
		if out.Via, err = netip.ParseAddr(r.Via); err != nil {
			return Route{}, fmt.Errorf("route to %s: %w", r.To, err)
		}
	}
	if r.To == "default" {
		if !out.Via.IsValid() {
			return Route{}, fmt.Errorf("the default route has no \"via\"")
		}
		out.To = defaultVia(out.Via).To
		return out, nil
	}
	to, err := parseAddress(r.To, "")
	out.To = to.Masked()
	return out, err
}
