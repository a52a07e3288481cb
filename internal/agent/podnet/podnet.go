// Package podnet says how a pod of this node is connected: its network namespace and the interfaces in it. The CNI server
// writes one record per pod, and everything else of the agent that enters a pod's namespace reads it. The package keeps
// records; it must not touch the network.
package podnet

import (
	"net"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Pod is one connected pod.
type Pod struct {
	UID         types.UID   `json:"uid"`
	Namespace   string      `json:"namespace"`
	Name        string      `json:"name"`
	ContainerID string      `json:"containerID"` // sandbox
	Netns       string      `json:"netns"`       // path that setns accepts
	Interfaces  []Interface `json:"interfaces"`  // in the order of their attachment; eth0 first
}

// Interface is one NIC inside the pod's namespace.
type Interface struct {
	Name     string           `json:"name"` // in the pod, e.g. eth0
	MAC      net.HardwareAddr `json:"mac"`
	MTU      int              `json:"mtu"`
	IPs      []netip.Prefix   `json:"ips"`      // address with the subnet's length
	Gateways []netip.Addr     `json:"gateways"` // one per family at most
	HostName string           `json:"hostName"` // the end in the node's namespace that is plugged into br-int
	Port     string           `json:"port"`     // logical switch port (iface-id); empty when another CNI plugin made the interface
	// Attachment is the key of the pod's annotation ("default", "NAMESPACE/NAD"), or NAMESPACE/NAD of another plugin's network.
	Attachment string `json:"attachment,omitempty"`
	// Default says that the pod's default route leads through here.
	Default bool `json:"default,omitempty"`
	// Tap says that a machine's tap takes the port: there is no device of this name in the pod, and HostName is empty.
	Tap bool `json:"tap,omitempty"`
	// Routes are those beside the default routes through Gateways.
	Routes []Route `json:"routes,omitempty"`
	// Network is the overlay network's own name, which several attachments may share; empty on the default network and on
	// those of other plugins.
	Network string `json:"network,omitempty"`
	// PluginRoutes are the routes that another plugin made, for guests that take over the interface.
	PluginRoutes []Route `json:"pluginRoutes,omitempty"`
	// DNS is what another plugin said of its network.
	DNS DNS `json:"dns,omitzero"`
}

// Delegated says whether another CNI plugin made the interface.
func (i Interface) Delegated() bool { return i.Port == "" }

// AllRoutes are the interface's routes beside those on the link, the default routes last. A route without a valid Via is on the link.
func (i Interface) AllRoutes() []Route {
	var defaults []Route
	for _, gateway := range i.Gateways {
		defaults = append(defaults, Route{netip.PrefixFrom(unspecified(gateway), 0), gateway})
	}
	var all []Route
	for _, r := range slices.Concat(i.Routes, i.PluginRoutes) {
		if r.Dest.Bits() == 0 {
			defaults = append(defaults, r)
		} else {
			all = append(all, r)
		}
	}
	return append(all, defaults...)
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// DNS is what a network says of name resolution.
type DNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
}

// TapOwner begins the owner (see package ovs) of every tap that is plugged for a machine in the pod: whoever disconnects the pod finds
// them by it.
func TapOwner(pod types.UID) string { return TapOwners + string(pod) + "/" }

// TapOwners begins the owners of all machines' taps.
const TapOwners = "tap/"

// Primary is the interface through which the pod's default route leads: that of the tenant's network, if the pod has one. Records
// of agents that knew one network only do not say which it is: the first.
func (p Pod) Primary() (Interface, bool) {
	for _, i := range p.Interfaces {
		if i.Default {
			return i, true
		}
	}
	if len(p.Interfaces) == 0 {
		return Interface{}, false
	}
	return p.Interfaces[0], true
}

// Interface is the pod's interface with a name.
func (p Pod) Interface(name string) (Interface, bool) {
	for _, i := range p.Interfaces {
		if i.Name == name {
			return i, true
		}
	}
	return Interface{}, false
}

// Route is a destination that is reached through a gateway.
type Route struct {
	Dest netip.Prefix `json:"dest"`
	Via  netip.Addr   `json:"via"`
}
