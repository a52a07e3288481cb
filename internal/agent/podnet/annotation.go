package podnet

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
)

// NetworksAnnotation is where the network controller writes what a pod's interfaces get, as a JSON object by network:
// DefaultNetwork or "<namespace>/<network attachment definition>".
const (
	NetworksAnnotation = "k8s.ovn.org/pod-networks"
	DefaultNetwork     = "default"
)

// Role says what an interface is to its pod.
type Role string

const (
	Primary   Role = "primary"               // holds the default route
	Secondary Role = "secondary"             // an additional network
	Locked    Role = "infrastructure-locked" // the default network of a pod whose primary network is another: kubelet's way in
)

// Attachment is one entry of the annotation.
type Attachment struct {
	IPs      []netip.Prefix
	MAC      net.HardwareAddr
	Gateways []netip.Addr
	Routes   []Route
	MTU      int // 0 when the annotation leaves it to the cluster's setting
	Role     Role
}

// attachmentJSON is the wire form (spec: OVN-Kubernetes pod annotation).
type attachmentJSON struct {
	IPs      []string    `json:"ip_addresses"`
	MAC      string      `json:"mac_address"`
	Gateways []string    `json:"gateway_ips"`
	Routes   []routeJSON `json:"routes"`
	MTU      int         `json:"mtu"`
	Role     Role        `json:"role"`
}

type routeJSON struct {
	Dest    string `json:"dest"`
	NextHop string `json:"nextHop"`
}

// ParseNetworks reads the annotation's value.
func ParseNetworks(value string) (map[string]Attachment, error) {
	var wire map[string]attachmentJSON
	if err := json.Unmarshal([]byte(value), &wire); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", NetworksAnnotation, err)
	}
	networks := make(map[string]Attachment, len(wire))
	for name, entry := range wire {
		attachment, err := entry.parse()
		if err != nil {
			return nil, fmt.Errorf("annotation %s, network %q: %w", NetworksAnnotation, name, err)
		}
		networks[name] = attachment
	}
	return networks, nil
}

func (w attachmentJSON) parse() (Attachment, error) {
	a := Attachment{MTU: w.MTU, Role: w.Role}
	var err error
	if a.MAC, err = net.ParseMAC(w.MAC); err != nil {
		return a, fmt.Errorf("mac_address: %w", err)
	}
	for _, text := range w.IPs {
		ip, err := netip.ParsePrefix(text)
		if err != nil {
			return a, fmt.Errorf("ip_addresses: %w", err)
		}
		a.IPs = append(a.IPs, ip)
	}
	for _, text := range w.Gateways {
		gateway, err := netip.ParseAddr(text)
		if err != nil {
			return a, fmt.Errorf("gateway_ips: %w", err)
		}
		a.Gateways = append(a.Gateways, gateway)
	}
	for _, r := range w.Routes {
		dest, err := netip.ParsePrefix(r.Dest)
		if err != nil {
			return a, fmt.Errorf("routes: %w", err)
		}
		via, err := netip.ParseAddr(r.NextHop)
		if err != nil {
			return a, fmt.Errorf("routes: nextHop: %w", err)
		}
		a.Routes = append(a.Routes, Route{dest, via})
	}
	return a, nil
}
