package cni

import (
	"fmt"
	"net/netip"
	"slices"

	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// wiring is everything that one pod gets: pure data, from which devices, ports, the record and the CNI result follow.
type wiring struct {
	record podnet.Pod
	// delegates are the interfaces that other plugins make, by their name. The record says of them only what is known before.
	delegates map[string]delegate.Attachment
}

// planFor is what a plan is made from.
type planFor struct {
	sandbox sandbox
	wanted  Wanted
	configs map[string]string // of the networks of other plugins, by NAMESPACE/NAD
	mtu     int               // of pods whose annotation names none
	inside  []netip.Prefix    // reached through the default network even if the default route leads elsewhere
}

// plan says how the pod is connected to all its networks: the default one, its namespace's own, then those that it asks for in their
// order. What the controller has not given yet is left out.
func plan(r planFor) (wiring, error) {
	s := r.sandbox
	w := wiring{delegates: map[string]delegate.Attachment{}, record: podnet.Pod{
		UID: s.pod.UID, Namespace: s.pod.Namespace, Name: s.pod.Name, ContainerID: s.containerID, Netns: s.netns,
	}}
	if _, ok := r.wanted.Given[podnetworks.Default]; !ok {
		return w, fmt.Errorf("annotation %s has no entry for network %q", podnetworks.PodAnnotation, podnetworks.Default)
	}
	w.add(r.first(&w))
	for _, key := range primaries(r.wanted.Given)[1:] {
		w.add(r.overlay(key, ""))
	}
	for _, sel := range r.wanted.Selections {
		i := r.overlay(sel.Key, sel.Interface)
		if config, ok := r.configs[sel.Network]; ok {
			i = podnet.Interface{Name: sel.Interface, Attachment: sel.Network}
			w.delegates[sel.Interface] = r.delegated(sel, config)
		} else if _, given := r.wanted.Given[sel.Key]; !given {
			continue
		}
		if sel.Element.GatewayRequest != nil {
			w.lead(&i, sel.gateways(), r.inside)
		}
		w.add(i)
	}
	return w, w.validate()
}

func (w *wiring) add(i podnet.Interface) { w.record.Interfaces = append(w.record.Interfaces, i) }

// lead has the pod's default routes lead through i. An empty list only takes i's own away.
func (w *wiring) lead(i *podnet.Interface, gateways []netip.Addr, inside []netip.Prefix) {
	i.Gateways, i.Default = gateways, len(gateways) > 0
	for n := range w.record.Interfaces {
		other := &w.record.Interfaces[n]
		for _, g := range gateways {
			same := func(a netip.Addr) bool { return a.Is4() == g.Is4() }
			at := slices.IndexFunc(other.Gateways, same)
			if at < 0 {
				continue
			}
			for _, dest := range inside {
				if same(dest.Addr()) && other.Attachment == podnetworks.Default {
					other.Routes = append(other.Routes, podnet.Route{Dest: dest, Via: other.Gateways[at]})
				}
			}
			other.Gateways = slices.DeleteFunc(slices.Clone(other.Gateways), same)
		}
		other.Default = other.Default && len(other.Gateways) > 0
	}
}

func (w *wiring) validate() error {
	seen := map[string]bool{}
	for _, i := range w.record.Interfaces {
		if err := link.ValidName(i.Name); err != nil {
			return fmt.Errorf("network %s: %w", i.Attachment, err)
		}
		if seen[i.Name] {
			return fmt.Errorf("two networks of the pod ask for the interface name %s; choose different ones in annotation k8s.v1.cni.cncf.io/networks", i.Name)
		}
		seen[i.Name] = true
	}
	return nil
}

// overlay is the interface on a network of ours.
func (r planFor) overlay(key, name string) podnet.Interface {
	a, s := r.wanted.Given[key], r.sandbox
	i := podnet.Interface{
		Name: a.Interface, MAC: a.MAC, MTU: a.MTU, IPs: a.IPs, Gateways: a.Gateways, Routes: recordRoutes(a.Routes),
		Port: a.Port, Attachment: key, Network: a.Name, Tap: a.Tap, Default: a.Role == podnetworks.Primary,
	}
	switch {
	case key == podnetworks.Default:
		i.Name, i.Port = s.ifName, topology.PodPort(s.pod.Namespace, s.pod.Name)
	case i.Name == "" && a.Role == podnetworks.Primary:
		i.Name = podnetworks.PrimaryInterface
	case i.Name == "":
		i.Name = name
	}
	if i.MTU == 0 {
		i.MTU = r.mtu
	}
	if !i.Tap {
		i.HostName = hostName(s.containerID, i.Name)
	}
	return i
}

func (r planFor) delegated(sel Selection, config string) delegate.Attachment {
	s := r.sandbox
	return delegate.Attachment{
		Network: sel.Network, Config: []byte(config), Namespace: s.pod.Namespace, Pod: s.pod.Name, UID: string(s.pod.UID),
		Container: s.containerID, Netns: s.netns, Interface: sel.Interface, Request: sel.request(),
	}
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

// isVeth says whether the interface is a pair of devices that this package makes.
func isVeth(i podnet.Interface) bool { return i.HostName != "" }

func vethOf(pod podnet.Pod, i podnet.Interface) link.Veth {
	return link.Veth{
		Host: i.HostName, Netns: pod.Netns, Name: i.Name, MAC: i.MAC, MTU: i.MTU, IPs: i.IPs, Routes: routesOf(i),
		Alias:   pod.Namespace + "/" + pod.Name + " " + i.Name,
		Several: several(pod, i),
	}
}

// several says whether the pod has another device on the interface's network.
func several(pod podnet.Pod, i podnet.Interface) bool {
	return i.Network != "" && slices.ContainsFunc(pod.Interfaces, func(other podnet.Interface) bool {
		return other.Name != i.Name && other.Network == i.Network && !other.Tap
	})
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
	p := ovs.Port{
		Name: i.HostName, Logical: i.Port, Version: string(pod.UID), Owner: ownerOf(pod.ContainerID) + i.Name,
		Info: map[string]string{"sandbox": pod.ContainerID, "pod-if-name": i.Name, "attached_mac": i.MAC.String(), "ip_addresses": joinIPs(i.IPs)},
	}
	if i.Network != "" {
		p.Info["k8s.ovn.org/network"], p.Info["k8s.ovn.org/nad"] = i.Network, i.Attachment
	}
	return p
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
