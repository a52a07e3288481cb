package netconfig

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

type v1Config struct {
	Config []v1Item `json:"config"`
}

// v1Item is an interface, a name server or a route; Type says which.
type v1Item struct {
	Type     string     `json:"type"`
	Name     string     `json:"name"`
	MAC      string     `json:"mac_address"`
	MTU      int        `json:"mtu"`
	AcceptRA *bool      `json:"accept-ra"`
	Subnets  []v1Subnet `json:"subnets"`
	VLANLink string     `json:"vlan_link"`
	VLANID   int        `json:"vlan_id"`
	Address  oneOrMany  `json:"address"` // name servers
	Search   oneOrMany  `json:"search"`
	v1Route
}

type v1Subnet struct {
	Type    string    `json:"type"`
	Address string    `json:"address"`
	Netmask string    `json:"netmask"`
	Gateway string    `json:"gateway"`
	DNS     oneOrMany `json:"dns_nameservers"`
	Search  oneOrMany `json:"dns_search"`
	Routes  []v1Route `json:"routes"`
}

type v1Route struct {
	Destination string `json:"destination"`
	Network     string `json:"network"`
	Netmask     string `json:"netmask"`
	Gateway     string `json:"gateway"`
	Metric      int    `json:"metric"`
}

// oneOrMany is a list that may be written as a single value.
type oneOrMany []string

func (o *oneOrMany) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*o = strings.Fields(one)
		return nil
	}
	return json.Unmarshal(data, (*[]string)(o))
}

func (o oneOrMany) addrs() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range o {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("name server %q is not an address", s)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseV1(raw []byte) (Config, error) {
	var in v1Config
	if err := json.Unmarshal(raw, &in); err != nil {
		return Config{}, fmt.Errorf("network configuration version 1: %w", err)
	}
	var out Config
	var routes []Route
	for i, item := range in.Config {
		var err error
		switch item.Type {
		case "physical", "vlan":
			err = out.addV1(item)
		case "nameserver":
			err = out.addServers(item.Address, item.Search)
		case "route":
			var r Route
			r, err = item.route()
			routes = append(routes, r)
		case "loopback":
		default:
			err = fmt.Errorf("type %q is unknown; this guest knows physical, vlan, nameserver, route and loopback", item.Type)
		}
		if err != nil {
			return Config{}, fmt.Errorf("network configuration version 1, item %d: %w", i+1, err)
		}
	}
	if len(out.NICs) > 0 { // a route stands beside the interfaces; the kernel finds its link by the gateway
		last := &out.NICs[len(out.NICs)-1]
		last.Routes = append(last.Routes, routes...)
	}
	return out, nil
}

func (c *Config) addServers(addresses, search oneOrMany) error {
	dns, err := addresses.addrs()
	c.DNS, c.Search = append(c.DNS, dns...), append(c.Search, search...)
	return err
}

func (c *Config) addV1(item v1Item) error {
	mac, err := parseMAC(item.MAC)
	if err != nil {
		return err
	}
	nic := NIC{Name: item.Name, MAC: mac, MTU: item.MTU, AcceptRA: choose(item.AcceptRA)}
	if item.Type == "vlan" {
		nic.VLAN, nic.MAC = &VLAN{Link: item.VLANLink, ID: item.VLANID}, nil
	} else if mac != nil { // as cloud-init does: the address finds the interface, the name is given to it
		nic.Name, nic.SetName = "", item.Name
	}
	for _, s := range item.Subnets {
		if err := nic.addSubnet(s); err != nil {
			return err
		}
	}
	c.NICs = append(c.NICs, nic)
	return nil
}

func (n *NIC) addSubnet(s v1Subnet) error {
	switch s.Type {
	case "dhcp", "dhcp4":
		n.DHCP4 = true
	case "dhcp6", "ipv6_dhcpv6-stateful":
		n.DHCP6 = Yes
	case "ipv6_slaac", "ipv6_dhcpv6-stateless":
		n.AcceptRA = Yes
	case "static", "static6":
		p, err := parseAddress(s.Address, s.Netmask)
		if err != nil {
			return err
		}
		n.Addresses = append(n.Addresses, p)
	case "manual":
	default:
		return fmt.Errorf("subnet type %q is unknown", s.Type)
	}
	if s.Gateway != "" {
		via, err := netip.ParseAddr(s.Gateway)
		if err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
		n.Routes = append(n.Routes, defaultVia(via))
	}
	for _, r := range s.Routes {
		route, err := r.route()
		if err != nil {
			return err
		}
		n.Routes = append(n.Routes, route)
	}
	dns, err := s.DNS.addrs()
	n.DNS, n.Search = append(n.DNS, dns...), append(n.Search, s.Search...)
	return err
}

func (r v1Route) route() (Route, error) {
	to := r.Network
	if to == "" {
		to = r.Destination
	}
	prefix, err := parseAddress(to, r.Netmask)
	if err != nil {
		return Route{}, err
	}
	out := Route{To: prefix.Masked(), Metric: r.Metric}
	if r.Gateway != "" {
		out.Via, err = netip.ParseAddr(r.Gateway)
	}
	return out, err
}
