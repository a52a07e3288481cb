package netconfig

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// The parts of OpenStack's network_data.json that a virtual machine uses.
type osConfig struct {
	Links    []osLink    `json:"links"`
	Networks []osNetwork `json:"networks"`
	Services []osService `json:"services"`
}

type osLink struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	MAC  string `json:"ethernet_mac_address"`
	MTU  int    `json:"mtu"`
}

type osNetwork struct {
	Link     string      `json:"link"`
	Type     string      `json:"type"`
	Address  string      `json:"ip_address"`
	Netmask  string      `json:"netmask"`
	Gateway  string      `json:"gateway"`
	Routes   []v1Route   `json:"routes"` // network, netmask, gateway: the same three names
	Services []osService `json:"services"`
}

type osService struct {
	Type    string     `json:"type"`
	Address netip.Addr `json:"address"`
}

func parseOpenStack(raw []byte) (Config, error) {
	var in osConfig
	if err := json.Unmarshal(raw, &in); err != nil {
		return Config{}, fmt.Errorf("network_data.json: %w", err)
	}
	out := Config{DNS: dnsServices(in.Services)}
	for _, l := range in.Links {
		mac, err := parseMAC(l.MAC)
		if err != nil {
			return Config{}, fmt.Errorf("network_data.json, link %s: %w", l.ID, err)
		}
		nic := NIC{Name: l.Name, MAC: mac, MTU: l.MTU}
		for _, n := range in.Networks {
			if n.Link != l.ID {
				continue
			}
			if err := nic.addOpenStack(n); err != nil {
				return Config{}, fmt.Errorf("network_data.json, network on link %s: %w", l.ID, err)
			}
		}
		out.NICs = append(out.NICs, nic)
	}
	return out, nil
}

func (n *NIC) addOpenStack(network osNetwork) error {
	subnet := v1Subnet{Address: network.Address, Netmask: network.Netmask, Gateway: network.Gateway, Routes: network.Routes}
	switch {
	case network.Type == "ipv4_dhcp":
		subnet.Type = "dhcp4"
	case network.Type == "ipv6_dhcp", strings.HasPrefix(network.Type, "ipv6_dhcpv6-stateful"):
		subnet.Type = "dhcp6"
	case network.Type == "ipv6_slaac", network.Type == "ipv6_dhcpv6-stateless":
		subnet.Type = "ipv6_slaac"
	default:
		subnet.Type = "static"
	}
	n.DNS = append(n.DNS, dnsServices(network.Services)...)
	return n.addSubnet(subnet)
}

func dnsServices(services []osService) []netip.Addr {
	var out []netip.Addr
	for _, s := range services {
		if s.Type == "dns" && s.Address.IsValid() {
			out = append(out, s.Address)
		}
	}
	return out
}
