package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
)

// NetworkStatusAnnotation tells people and other programs which interfaces a pod has.
const NetworkStatusAnnotation = "k8s.v1.cni.cncf.io/network-status"

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
		result.Interfaces = append(result.Interfaces,
			&current.Interface{Name: i.HostName, Mtu: mtu},
			&current.Interface{Name: i.Name, Mac: i.MAC.String(), Mtu: mtu, Sandbox: pod.Netns})
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

// networkStatus is one entry of NetworkStatusAnnotation.
type networkStatus struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips,omitempty"`
	MAC       string   `json:"mac"`
	MTU       int      `json:"mtu,omitempty"`
	Default   bool     `json:"default,omitempty"`
	DNS       struct{} `json:"dns"`
	Gateway   []string `json:"gateway,omitempty"`
}

func renderStatus(w wiring) (string, error) {
	var list []networkStatus
	for n, i := range w.record.Interfaces {
		entry := networkStatus{Name: NetworkName, Interface: i.Name, MAC: i.MAC.String(), MTU: i.MTU, Default: w.roles[n] != podnetworks.InfrastructureLocal}
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
