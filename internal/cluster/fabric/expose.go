package fabric

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/knftables"

	"patchbay/internal/cluster/layout"
)

// The host's leg in the fabric exists once: all clusters use the same addresses. Its name and its alias tell whose it is.
const (
	hostDevice = "patchbay0" // in the host's namespace
	hostPort   = "host0"     // its other end, a port of Bridge
	exposeNFT  = "patchbay-expose"
)

// Addresses of the host in the fabric.
var (
	host4 = netip.MustParseAddr("172.30.0.254")
	host6 = netip.MustParseAddr("fd00:172:30::fe")
)

// forwardingSysctl lets the host forward for the cluster. Its counterpart of IPv6 is left alone: it would make the host ignore
// the routers that it gets its own IPv6 addresses from.
const forwardingSysctl = "/proc/sys/net/ipv4/ip_forward"

// errOtherExposed tells that the one leg belongs to another cluster.
var errOtherExposed = errors.New("only one cluster of a host can be exposed")

// Expose gives the host a leg in the fabric, and the fabric a way out through the host. It is the one place that changes the
// host's network, and only because the user asked. Unexpose takes everything back.
func Expose(ctx context.Context, c layout.Cluster, mtu int) error {
	if err := ensureHostCable(c, mtu); err != nil {
		return fmt.Errorf("connect the host to the fabric: %w", err)
	}
	err := inNamespace(c.FabricNamespace(), func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(Bridge)
		if err != nil {
			return err
		}
		port, err := h.LinkByName(hostPort)
		if err != nil {
			return err
		}
		if err := errors.Join(h.LinkSetMaster(port, bridge), h.LinkSetUp(port)); err != nil {
			return err
		}
		return errors.Join(ensureDefaultRoute(h, bridge, host4), ensureDefaultRoute(h, bridge, host6))
	})
	if err != nil {
		return fmt.Errorf("connect the host to the fabric: %w", err)
	}
	if err := enableForwarding(c); err != nil {
		return fmt.Errorf("let the host forward: %w", err)
	}
	return masquerade(ctx)
}

// ensureHostCable makes the pair of devices and configures the host's end.
func ensureHostCable(c layout.Cluster, mtu int) error {
	host, err := netlink.LinkByName(hostDevice)
	if isNotFound(err) {
		if err := addHostCable(c, mtu); err != nil {
			return err
		}
		host, err = netlink.LinkByName(hostDevice)
	}
	if err != nil {
		return err
	}
	if owner := host.Attrs().Alias; owner != c.Dir() {
		return fmt.Errorf("%w, and %s belongs to %s; remove that cluster or leave --expose out", errOtherExposed, hostDevice, owner)
	}
	handle := &netlink.Handle{}
	return errors.Join(
		ensureAddress(handle, host, netip.PrefixFrom(host4, layout.Fabric4.Bits())),
		ensureAddress(handle, host, netip.PrefixFrom(host6, layout.Fabric6.Bits())),
		disableChecksumOffload(hostDevice),
		netlink.LinkSetUp(host),
	)
}

func addHostCable(c layout.Cluster, mtu int) error {
	ns, err := netns.GetFromName(c.FabricNamespace())
	if err != nil {
		return err
	}
	defer ns.Close()
	pair := &netlink.Veth{LinkAttrs: attributes(hostDevice, mtu), PeerName: hostPort, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(ns))}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	return netlink.LinkSetAlias(pair, c.Dir())
}

// masquerade hides the fabric behind the host's own addresses.
func masquerade(ctx context.Context) error {
	nft, err := knftables.New(knftables.InetFamily, exposeNFT)
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("patchbay up --expose; removed by patchbay down")})
	tx.Add(&knftables.Chain{Name: "postrouting", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority)})
	tx.Flush(&knftables.Chain{Name: "postrouting"})
	tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat("ip saddr", layout.Fabric4, "oifname !=", hostDevice, "masquerade")})
	tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat("ip6 saddr", layout.Fabric6, "oifname !=", hostDevice, "masquerade")})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("hide the fabric behind the host: %w", err)
	}
	return nil
}

// Unexpose takes back what Expose did. A cluster that was not exposed has nothing to take back.
func Unexpose(ctx context.Context, c layout.Cluster) error {
	saved, err := os.ReadFile(savedForwarding(c))
	if errors.Is(err, fs.ErrNotExist) {
		return deleteHostDevice(c)
	}
	if err != nil {
		return err
	}
	return errors.Join(deleteHostDevice(c), deleteMasquerade(ctx), os.WriteFile(forwardingSysctl, saved, 0o644))
}

func deleteMasquerade(ctx context.Context) error {
	nft, err := knftables.New(knftables.InetFamily, exposeNFT)
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{}) // deleting what is not there would be an error
	tx.Delete(&knftables.Table{})
	return nft.Run(ctx, tx)
}

func deleteHostDevice(c layout.Cluster) error {
	link, err := netlink.LinkByName(hostDevice)
	if isNotFound(err) || (err == nil && link.Attrs().Alias != c.Dir()) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

func savedForwarding(c layout.Cluster) string { return filepath.Join(c.Run(), "host-ip-forward") }

// enableForwarding writes the host's own value down before it changes it, once: a second look would see ours.
func enableForwarding(c layout.Cluster) error {
	before, err := os.ReadFile(forwardingSysctl)
	if err != nil {
		return err
	}
	if _, err := os.Stat(savedForwarding(c)); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(savedForwarding(c), before, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(forwardingSysctl, []byte("1"), 0o644)
}
