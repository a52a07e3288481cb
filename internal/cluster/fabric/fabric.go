// Package fabric makes the network that joins the nodes of a local cluster: a bridge in the fabric's namespace and one cable to
// each node. It works through netlink inside the cluster's own namespaces and must not change the host's.
package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// Names of devices.
const (
	Bridge     = "br0"     // in the fabric's namespace; carries the control plane's addresses
	NodeNIC    = "eth0"    // in a node's namespace: its end of the cable, a port of NodeBridge
	NodeBridge = "br-phys" // in a node's namespace: the Open vSwitch bridge that carries the node's addresses
)

// Config says what one fabric looks like.
type Config struct {
	Cluster layout.Cluster
	MTU     int
	// Userspace is true when Open vSwitch forwards in user space. It does not complete partial checksums, and it reads devices
	// through packet sockets, so that the kernel must be kept from handling the same frames.
	Userspace bool
	// ExtraNICs is how many cards every node has besides NodeNIC. Each lies in a network of its own that joins the nodes and has no
	// addresses: what becomes of it is the user's business.
	ExtraNICs int
}

// EnsureControlPlane makes the fabric's namespace and its bridge.
func EnsureControlPlane(c Config) error {
	name := c.Cluster.FabricNamespace()
	if _, err := namespace.CreateNetwork(name); err != nil {
		return err
	}
	return inNamespace(name, func(h *netlink.Handle) error {
		if err := ensureLoopback(h); err != nil {
			return err
		}
		bridge, err := ensureLink(h, &netlink.Bridge{LinkAttrs: attributes(Bridge, c.MTU)})
		if err != nil {
			return err
		}
		if err := c.setUp(h, name, bridge); err != nil {
			return err
		}
		for _, addr := range []netip.Prefix{
			netip.PrefixFrom(layout.ControlPlane4, layout.Fabric4.Bits()),
			netip.PrefixFrom(layout.ControlPlane6, layout.Fabric6.Bits()),
		} {
			if err := ensureAddress(h, bridge, addr); err != nil {
				return err
			}
		}
		if err := c.ensureExtraBridges(h, name); err != nil {
			return err
		}
		// The control plane is the nodes' gateway; what it forwards may leave by the bridge that it came from.
		return writeSysctls(name, map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/" + Bridge + "/send_redirects": "0",
		})
	})
}

// EnsureNode makes a node's namespace and its cable to the bridge. The node's addresses come later, by EnsureNodeAddresses, because
// the device that carries them belongs to Open vSwitch.
func EnsureNode(c Config, node layout.Node) error {
	if _, err := namespace.CreateNetwork(node.Namespace()); err != nil {
		return err
	}
	if err := ensureCable(c, node); err != nil {
		return fmt.Errorf("connect %s to the fabric: %w", node.Name, err)
	}
	err := inNamespace(c.Cluster.FabricNamespace(), func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(Bridge)
		if err != nil {
			return err
		}
		port, err := h.LinkByName(node.FabricPort())
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(port, bridge); err != nil {
			return err
		}
		return c.setUp(h, c.Cluster.FabricNamespace(), port)
	})
	if err != nil {
		return fmt.Errorf("plug %s into the fabric: %w", node.Name, err)
	}
	if err := inNamespace(node.Namespace(), func(h *netlink.Handle) error { return c.configureNIC(h, node) }); err != nil {
		return err
	}
	return c.ensureExtraNICs(node)
}

// ensureCable makes the pair of devices. Both ends vanish together, so a missing NIC is the only thing to look for.
func ensureCable(c Config, node layout.Node) error {
	nodeNS, err := netns.GetFromName(node.Namespace())
	if err != nil {
		return err
	}
	defer nodeNS.Close()
	return inNamespace(c.Cluster.FabricNamespace(), func(h *netlink.Handle) error {
		if _, err := h.LinkByName(node.FabricPort()); !isNotFound(err) {
			return err
		}
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs:        attributes(node.FabricPort(), c.MTU),
			PeerName:         NodeNIC,
			PeerHardwareAddr: node.MAC(),
			PeerMTU:          uint32(c.MTU),
			PeerNamespace:    netlink.NsFd(int(nodeNS)),
		})
	})
}

func (c Config) configureNIC(h *netlink.Handle, node layout.Node) error {
	if err := ensureLoopback(h); err != nil {
		return err
	}
	nic, err := h.LinkByName(NodeNIC)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", NodeNIC, node.Name, err)
	}
	// The NIC is a port of a bridge: the bridge's own device has the addresses.
	if err := writeSysctls(node.Namespace(), map[string]string{"net/ipv6/conf/" + NodeNIC + "/disable_ipv6": "1"}); err != nil {
		return err
	}
	if c.Userspace {
		if err := dropAtIngress(node.Namespace(), NodeNIC); err != nil {
			return err
		}
	}
	return c.setUp(h, node.Namespace(), nic)
}

// EnsureNodeAddresses gives the node's bridge device its addresses and routes. It is called after every start of ovs-vswitchd, which
// makes the device anew in its user space datapath.
func EnsureNodeAddresses(c Config, node layout.Node) error {
	err := inNamespace(node.Namespace(), func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(NodeBridge)
		if err != nil {
			return err
		}
		if err := c.setUp(h, node.Namespace(), bridge); err != nil {
			return err
		}
		for _, a := range []struct{ addr, gateway netip.Addr }{{node.IPv4(), layout.ControlPlane4}, {node.IPv6(), layout.ControlPlane6}} {
			if err := ensureAddress(h, bridge, netip.PrefixFrom(a.addr, prefixLength(a.addr))); err != nil {
				return err
			}
			if err := ensureDefaultRoute(h, bridge, a.gateway); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("give %s its addresses: %w", node.Name, err)
	}
	return nil
}

func prefixLength(a netip.Addr) int {
	if a.Is4() {
		return layout.Fabric4.Bits()
	}
	return layout.Fabric6.Bits()
}

// Delete removes the namespaces of a cluster with everything in them. Devices go first: a namespace lives on while anyone still
// holds it, and must not keep a cable then.
func Delete(cluster layout.Cluster, namespaces []string) error {
	var errs []error
	for _, name := range namespaces {
		if namespace.NetworkInode(name) != 0 {
			errs = append(errs, inNamespace(name, deleteLinks))
		}
		errs = append(errs, namespace.DeleteNetwork(name))
	}
	return errors.Join(errs...)
}

func deleteLinks(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		switch link.Type() {
		case "veth", "bridge", "tuntap":
			// Its other half may have taken it along.
			if err := h.LinkDel(link); err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete %s: %w", link.Attrs().Name, err)
			}
		}
	}
	return nil
}

// setUp applies MTU and checksum rules and enables the device.
func (c Config) setUp(h *netlink.Handle, ns string, link netlink.Link) error {
	name := link.Attrs().Name
	if link.Attrs().MTU != c.MTU {
		if err := h.LinkSetMTU(link, c.MTU); err != nil {
			return fmt.Errorf("set MTU %d on %s: %w", c.MTU, name, err)
		}
	}
	if c.Userspace {
		if err := namespace.InNetwork(ns, func() error { return disableChecksumOffload(name) }); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("enable %s: %w", name, err)
	}
	return nil
}

func attributes(name string, mtu int) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	return attrs
}

func inNamespace(name string, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(namespace.NetworkPath(name))
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", name, err)
	}
	defer handle.Close()
	return f(handle)
}

func ensureLoopback(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

func ensureLink(h *netlink.Handle, link netlink.Link) (netlink.Link, error) {
	name := link.Attrs().Name
	if err := h.LinkAdd(link); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return h.LinkByName(name)
}

func ensureAddress(h *netlink.Handle, link netlink.Link, addr netip.Prefix) error {
	// Duplicate address detection would hold the address back for a second; the plan of addresses already excludes it.
	err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD})
	if err != nil {
		return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, addr, err)
	}
	return nil
}

func ensureDefaultRoute(h *netlink.Handle, link netlink.Link, gateway netip.Addr) error {
	err := h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("route through %s: %w", gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// writeSysctls sets values below /proc/sys as seen from a network namespace. Only net/ is per namespace.
func writeSysctls(ns string, values map[string]string) error {
	return namespace.InNetwork(ns, func() error {
		for key, value := range values {
			if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
				return fmt.Errorf("set sysctl %s in %s: %w", key, ns, err)
			}
		}
		return nil
	})
}
