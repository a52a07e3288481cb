package cni

import (
	"fmt"
	"net/netip"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// wiring is everything that one pod gets: pure data, from which devices, ports, the record and the CNI result follow.
type wiring struct {
	record podnet.Pod
	roles  []podnetworks.Role // of record.Interfaces
}

// plan says how the pod is connected to the default network.
func plan(s sandbox, networks map[string]podnetworks.Network, defaultMTU int) (wiring, error) {
	a, ok := networks[podnetworks.Default]
	if !ok {
		return wiring{}, fmt.Errorf("annotation %s has no entry for network %q", podnetworks.PodAnnotation, podnetworks.Default)
	}
	iface := podnet.Interface{
		Name: s.ifName, MAC: a.MAC, MTU: a.MTU, IPs: a.IPs, Gateways: a.Gateways, Routes: recordRoutes(a.Routes),
		HostName: hostName(s.containerID, s.ifName),
		Port:     topology.PodPort(s.pod.Namespace, s.pod.Name),
	}
	if iface.MTU == 0 {
		iface.MTU = defaultMTU
	}
	return wiring{
		record: podnet.Pod{
			UID: s.pod.UID, Namespace: s.pod.Namespace, Name: s.pod.Name, ContainerID: s.containerID, Netns: s.netns,
			Interfaces: []podnet.Interface{iface},
		},
		roles: []podnetworks.Role{a.Role},
	}, nil
}

func recordRoutes(routes []podnetworks.Route) []podnet.Route {
	var out []podnet.Route
	for _, r := range routes {
		out = append(out, podnet.Route{Dest: r.Dest, Via: r.NextHop})
	}
	return out
}

// hostName is the same for every attempt to connect one interface of one sandbox, so that an attempt finds the remains of
// the one before, and DEL needs no record.
func hostName(containerID, ifName string) string {
	return link.Name(link.VethPrefix, containerID, ifName)
}

// Owners of OVS ports that this package plugs: ownerPrefix + container ID + "/" + interface.
const ownerPrefix = "cni/"

func ownerOf(containerID string) string { return ownerPrefix + containerID + "/" }

func vethOf(pod podnet.Pod, i podnet.Interface) link.Veth {
	return link.Veth{
		Host: i.HostName, Netns: pod.Netns, Name: i.Name, MAC: i.MAC, MTU: i.MTU, IPs: i.IPs, Routes: routesOf(i),
		Alias: pod.Namespace + "/" + pod.Name + " " + i.Name,
	}
}

func routesOf(i podnet.Interface) []link.Route {
	var routes []link.Route
	for _, gateway := range i.Gateways {
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gateway.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		routes = append(routes, link.Route{Dest: everything, Via: gateway})
	}
	for _, r := range i.Routes {
		routes = append(routes, link.Route{Dest: r.Dest, Via: r.Via})
	}
	return routes
}

func portOf(pod podnet.Pod, i podnet.Interface) ovs.Port {
	return ovs.Port{
		Name: i.HostName, Logical: i.Port, Version: string(pod.UID), Owner: ownerOf(pod.ContainerID) + i.Name,
		Info: map[string]string{"sandbox": pod.ContainerID, "pod-if-name": i.Name, "attached_mac": i.MAC.String(), "ip_addresses": joinIPs(i.IPs)},
	}
}

func joinIPs(ips []netip.Prefix) string {
	out := ""
	for n, ip := range ips {
		if n > 0 {
			out += ","
		}
		out += ip.String()
	}
	return out
}
