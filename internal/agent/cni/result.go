package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// NetworkName is the name of the cluster's network in the CNI configuration and in network-status, the one that users of
// OVN-Kubernetes know.
const NetworkName = "ovn-kubernetes"

// mtuSince is the first CNI version whose interfaces carry an MTU.
const mtuSince = "1.1.0"

// render makes the CNI result in the version that was asked for.
func render(pod podnet.Pod, cniVersion string) (json.RawMessage, error) {
	withMTU, err := version.GreaterThanOrEqualTo(cniVersion, mtuSince)
	if err != nil {
		return nil, err
	}
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for _, i := range pod.Interfaces {
		mtu := 0
		if withMTU {
			mtu = i.MTU
		}
		if i.Tap {
			continue // it is the guest's, not the pod's
		}
		if isVeth(i) {
			result.Interfaces = append(result.Interfaces, &current.Interface{Name: i.HostName, Mtu: mtu})
		}
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: i.Name, Mac: i.MAC.String(), Mtu: mtu, Sandbox: pod.Netns})
		inPod := len(result.Interfaces) - 1
		for _, ip := range i.IPs {
			result.IPs = append(result.IPs, &current.IPConfig{
				Interface: current.Int(inPod), Address: ipNet(ip), Gateway: gatewayOf(i, ip.Addr())})
		}
		for _, r := range routesOf(i) {
			result.Routes = append(result.Routes, &cnitypes.Route{Dst: ipNet(r.Dest), GW: r.Via.AsSlice()})
		}
	}
	versioned, err := result.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("CNI result in version %s: %w", cniVersion, err)
	}
	return json.Marshal(versioned)
}

func gatewayOf(i podnet.Interface, ip netip.Addr) net.IP {
	for _, gateway := range i.Gateways {
		if gateway.Is4() == ip.Is4() {
			return gateway.AsSlice()
		}
	}
	return nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// networkStatus is one entry of the annotation that tells people and other programs which interfaces a pod has.
type networkStatus struct {
	Name      string     `json:"name"`
	Interface string     `json:"interface"`
	IPs       []string   `json:"ips,omitempty"`
	MAC       string     `json:"mac,omitempty"`
	MTU       int        `json:"mtu,omitempty"`
	Default   bool       `json:"default,omitempty"`
	DNS       podnet.DNS `json:"dns"`
	Gateway   []string   `json:"gateway,omitempty"`
}

// renderStatus writes the annotation. A machine's tap is listed as an interface of the pod, which is how others learn its addresses.
func renderStatus(pod podnet.Pod) (string, error) {
	var list []networkStatus
	for _, i := range pod.Interfaces {
		entry := networkStatus{Name: statusName(i), Interface: i.Name, MAC: i.MAC.String(), MTU: i.MTU, Default: i.Default, DNS: i.DNS}
		for _, ip := range i.IPs {
			entry.IPs = append(entry.IPs, ip.Addr().String())
		}
		for _, gateway := range i.Gateways {
			entry.Gateway = append(entry.Gateway, gateway.String())
		}
		list = append(list, entry)
	}
	data, err := json.Marshal(list)
	return string(data), err
}

// statusName is what a network is called there: the cluster's own and the tenant's share a name, because one CNI request made both.
func statusName(i podnet.Interface) string {
	if i.Attachment == podnetworks.Default || i.Attachment == "" || i.Name == podnetworks.PrimaryInterface {
		return NetworkName
	}
	parts := strings.SplitN(i.Attachment, "/", 3)
	return strings.Join(parts[:min(len(parts), 2)], "/")
}

// describe fills in what another plugin made.
func describe(i *podnet.Interface, result *current.Result) {
	at := -1
	for n, made := range result.Interfaces {
		if made.Sandbox != "" && made.Name == i.Name {
			at = n
			i.MAC, _ = net.ParseMAC(made.Mac)
			i.MTU = made.Mtu
		}
	}
	for _, ip := range result.IPs {
		address, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok || ip.Interface != nil && at >= 0 && *ip.Interface != at {
			continue
		}
		bits, _ := ip.Address.Mask.Size()
		i.IPs = append(i.IPs, netip.PrefixFrom(address.Unmap(), bits))
	}
	i.PluginRoutes = pluginRoutes(result)
	i.DNS = podnet.DNS{Nameservers: result.DNS.Nameservers, Domain: result.DNS.Domain, Search: result.DNS.Search}
}

// pluginRoutes reads a result's routes. One without a gateway goes through that of the addresses, if they have one.
func pluginRoutes(result *current.Result) []podnet.Route {
	gateway := func(is4 bool) netip.Addr {
		for _, ip := range result.IPs {
			if a, ok := netip.AddrFromSlice(ip.Gateway); ok && a.Unmap().Is4() == is4 {
				return a.Unmap()
			}
		}
		return netip.Addr{}
	}
	var routes []podnet.Route
	for _, r := range result.Routes {
		to, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		route := podnet.Route{Dest: netip.PrefixFrom(to.Unmap(), bits), Via: gateway(to.Unmap().Is4())}
		if via, ok := netip.AddrFromSlice(r.GW); ok {
			route.Via = via.Unmap()
		}
		routes = append(routes, route)
	}
	return routes
}
