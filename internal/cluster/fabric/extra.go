package fabric

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"patchbay/internal/cluster/layout"
)

// MaxExtraNICs bounds the cards that a node may have besides NodeNIC.
const MaxExtraNICs = 8

// ExtraNIC names a node's extra card, counted from 1.
func ExtraNIC(index int) string { return fmt.Sprintf("eth%d", index) }

func extraBridge(index int) string { return fmt.Sprintf("br%d", index) }

func extraPort(node layout.Node, index int) string {
	return fmt.Sprintf("%sx%d", node.FabricPort(), index)
}

// extraMAC is fixed, so that a node that is made anew is the same neighbour.
func extraMAC(node layout.Node, index int) net.HardwareAddr {
	v4 := node.IPv4().As4()
	return net.HardwareAddr{0x0a, 0x59, byte(index), v4[1], v4[2], v4[3]}
}

// ensureExtraBridges makes the networks of the extra cards. They snoop no multicast and learn nothing but addresses: a cable, not
// a router.
func (c Config) ensureExtraBridges(h *netlink.Handle, ns string) error {
	for i := 1; i <= c.ExtraNICs; i++ {
		off := false
		bridge, err := ensureLink(h, &netlink.Bridge{LinkAttrs: attributes(extraBridge(i), c.MTU), MulticastSnooping: &off})
		if err != nil {
			return err
		}
		if err := writeSysctls(ns, map[string]string{"net/ipv6/conf/" + extraBridge(i) + "/disable_ipv6": "1"}); err != nil {
			return err
		}
		if err := c.setUp(h, ns, bridge); err != nil {
			return err
		}
	}
	return nil
}

// ensureExtraNICs makes a node's extra cards. One that is there is left as it is: it is the user's to configure.
func (c Config) ensureExtraNICs(node layout.Node) error {
	for i := 1; i <= c.ExtraNICs; i++ {
		made, err := c.ensureExtraCable(node, i)
		if err != nil {
			return fmt.Errorf("give %s its card %s: %w", node.Name, ExtraNIC(i), err)
		}
		if !made {
			continue
		}
		err = inNamespace(node.Namespace(), func(h *netlink.Handle) error {
			nic, err := h.LinkByName(ExtraNIC(i))
			if err != nil {
				return err
			}
			return c.setUp(h, node.Namespace(), nic)
		})
		if err != nil {
			return fmt.Errorf("give %s its card %s: %w", node.Name, ExtraNIC(i), err)
		}
	}
	return nil
}

func (c Config) ensureExtraCable(node layout.Node, index int) (made bool, err error) {
	nodeNS, err := netns.GetFromName(node.Namespace())
	if err != nil {
		return false, err
	}
	defer nodeNS.Close()
	fabric := c.Cluster.FabricNamespace()
	err = inNamespace(fabric, func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(extraBridge(index))
		if err != nil {
			return err
		}
		if _, err := h.LinkByName(extraPort(node, index)); isNotFound(err) {
			made = true
			err = h.LinkAdd(&netlink.Veth{
				LinkAttrs: attributes(extraPort(node, index), c.MTU), PeerName: ExtraNIC(index), PeerHardwareAddr: extraMAC(node, index),
				PeerMTU: uint32(c.MTU), PeerNamespace: netlink.NsFd(int(nodeNS)),
			})
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		port, err := h.LinkByName(extraPort(node, index))
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(port, bridge); err != nil {
			return err
		}
		return c.setUp(h, fabric, port)
	})
	return made, err
}
