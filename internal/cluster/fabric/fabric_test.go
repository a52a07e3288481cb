package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// testConfig is a fabric of this test's own; everything of it is removed at the end.
func testConfig(t *testing.T, mtu int) Config {
	t.Helper()
	c := Config{Cluster: layout.Cluster{Home: t.TempDir(), Name: fmt.Sprintf("ft%d", os.Getpid())}, MTU: mtu, Userspace: true}
	if err := os.MkdirAll(c.Cluster.Run(), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, c) })
	return c
}

func remove(t *testing.T, c Config) {
	t.Helper()
	names := []string{c.Cluster.FabricNamespace()}
	for _, node := range c.Cluster.Nodes(2) {
		names = append(names, node.Namespace())
	}
	if err := Delete(c.Cluster, names); err != nil {
		t.Error(err)
	}
}

// build makes a fabric of two nodes whose bridges are the kernel's, in the place of Open vSwitch's.
func build(t *testing.T, c Config) {
	t.Helper()
	if err := EnsureControlPlane(c); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.Cluster.Nodes(2) {
		if err := EnsureNode(c, node); err != nil {
			t.Fatal(err)
		}
		err := inNamespace(node.Namespace(), func(h *netlink.Handle) error {
			bridge, err := ensureLink(h, &netlink.Bridge{LinkAttrs: attributes(NodeBridge, c.MTU)})
			if err != nil {
				return err
			}
			nic, err := h.LinkByName(NodeNIC)
			if err != nil {
				return err
			}
			return h.LinkSetMaster(nic, bridge)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := EnsureNodeAddresses(c, node); err != nil {
			t.Fatal(err)
		}
	}
}

func inside(t *testing.T, ns string, command ...string) string {
	t.Helper()
	var out []byte
	err := namespace.InNetwork(ns, func() error {
		var err error
		out, err = exec.Command(command[0], command[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v in %s: %v\n%s", command, ns, err, out)
	}
	return string(out)
}

func TestNodesReachTheControlPlaneAndEachOther(t *testing.T) {
	// The kernel's bridge has no packet socket: without the ingress hook of userspace Open vSwitch.
	c := testConfig(t, 9000)
	c.Userspace = false
	for range 2 { // the second time changes nothing
		build(t, c)
	}
	one, two := c.Cluster.Node(1), c.Cluster.Node(2)
	for _, target := range []netip.Addr{layout.ControlPlane4, layout.ControlPlane6, two.IPv4(), two.IPv6()} {
		size := "8972" // a full frame of the fabric's MTU
		if target.Is6() {
			size = "8952"
		}
		inside(t, one.Namespace(), "ping", "-c1", "-W3", "-Mdo", "-s", size, target.String())
	}
	routes := inside(t, one.Namespace(), "ip", "route", "show", "default") + inside(t, one.Namespace(), "ip", "-6", "route", "show", "default")
	for _, want := range []string{"default via 172.30.0.1 dev br-phys", "default via fd00:172:30::1 dev br-phys"} {
		if !strings.Contains(routes, want) {
			t.Errorf("routes lack %q:\n%s", want, routes)
		}
	}
}

func TestUserspaceRules(t *testing.T) {
	c := testConfig(t, 1500)
	build(t, c)
	node := c.Cluster.Node(1)
	want := `table netdev patchbay-fabric {
	chain eth0 {
		type filter hook ingress device "eth0" priority filter; policy drop;
	}
}
`
	if diff := cmp.Diff(want, inside(t, node.Namespace(), "nft", "list", "ruleset")); diff != "" {
		t.Errorf("rules of the node (-want +got):\n%s", diff)
	}
	if got := inside(t, node.Namespace(), "cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); strings.TrimSpace(got) != "1" {
		t.Errorf("eth0 has IPv6: disable_ipv6 is %s", got)
	}
	for ns, device := range map[string]string{node.Namespace(): NodeNIC, c.Cluster.FabricNamespace(): node.FabricPort()} {
		features := inside(t, ns, "ethtool", "-k", device)
		if !strings.Contains(features, "tx-checksumming: off") {
			t.Errorf("%s completes no checksums itself:\n%s", device, features)
		}
	}
	link := inside(t, node.Namespace(), "ip", "link", "show", "eth0")
	if !strings.Contains(link, node.MAC().String()) {
		t.Errorf("eth0 lacks the address %s:\n%s", node.MAC(), link)
	}
}

func TestDeleteLeavesNothingAndMayBeRepeated(t *testing.T) {
	c := testConfig(t, 1500)
	build(t, c)
	// A process that stays in the node must not keep the cable.
	holder := exec.Command("sleep", "1000")
	if err := namespace.InNetwork(c.Cluster.Node(1).Namespace(), holder.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	remove(t, c)
	out, err := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", holder.Process.Pid), "ip", "-br", "link").CombinedOutput()
	if err != nil || strings.Contains(string(out), NodeNIC) {
		t.Errorf("the held namespace has %s (%v)", out, err)
	}
	for _, name := range []string{c.Cluster.FabricNamespace(), c.Cluster.Node(1).Namespace(), c.Cluster.Node(2).Namespace()} {
		if namespace.NetworkInode(name) != 0 {
			t.Errorf("%s is still there", name)
		}
	}
	remove(t, c)
}

// TestExpose has a namespace in the place of the host's: the test must not change the host.
func TestExpose(t *testing.T) {
	c := testConfig(t, 1500)
	build(t, c)
	host := fmt.Sprintf("pb-ft-host-%d", os.Getpid())
	if _, err := namespace.CreateNetwork(host); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := namespace.DeleteNetwork(host); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	before := hostState(t, host)
	for range 2 {
		if err := namespace.InNetwork(host, func() error { return Expose(ctx, c.Cluster, c.MTU) }); err != nil {
			t.Fatal(err)
		}
	}
	if got := inside(t, host, "cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "1" {
		t.Errorf("ip_forward is %s", got)
	}
	inside(t, host, "ping", "-c1", "-W3", layout.ControlPlane4.String())
	if rules := inside(t, host, "nft", "list", "ruleset"); !strings.Contains(rules, `ip saddr 172.30.0.0/24 oifname != "patchbay0" masquerade`) {
		t.Errorf("rules of the host:\n%s", rules)
	}
	other := c.Cluster
	other.Name = "other"
	err := namespace.InNetwork(host, func() error { return Expose(ctx, other, c.MTU) })
	if err == nil || !strings.Contains(err.Error(), "only one cluster of a host can be exposed") {
		t.Errorf("a second cluster: %v", err)
	}
	for range 2 {
		if err := namespace.InNetwork(host, func() error { return Unexpose(ctx, c.Cluster) }); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, hostState(t, host)); diff != "" {
		t.Errorf("the host changed (-before +after):\n%s", diff)
	}
}

func hostState(t *testing.T, ns string) string {
	t.Helper()
	return inside(t, ns, "sh", "-c", "ip -br link; ip route; ip -6 route; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward")
}

// TestExtraNICs: cards of the user's own, with no address, in networks that join the nodes and nothing else.
func TestExtraNICs(t *testing.T) {
	c := testConfig(t, 1500)
	c.ExtraNICs = 2
	build(t, c)
	one, two := c.Cluster.Node(1), c.Cluster.Node(2)
	for _, node := range []layout.Node{one, two} {
		for _, nic := range []string{"eth1", "eth2"} {
			if got := inside(t, node.Namespace(), "ip", "-4", "-br", "addr", "show", nic); strings.Contains(got, "/") {
				t.Errorf("%s of %s has addresses: %s", nic, node.Name, got)
			}
		}
	}
	inside(t, one.Namespace(), "ip", "addr", "add", "192.0.2.1/24", "dev", "eth1")
	inside(t, two.Namespace(), "ip", "addr", "add", "192.0.2.2/24", "dev", "eth1")
	inside(t, one.Namespace(), "ping", "-c1", "-W3", "192.0.2.2")
	inside(t, one.Namespace(), "ip", "link", "set", "eth2", "down")
	build(t, c) // as after a crash: what the user did stays
	if got := inside(t, one.Namespace(), "ip", "-4", "-br", "addr", "show", "eth1"); !strings.Contains(got, "192.0.2.1/24") {
		t.Errorf("the second time took the user's address: %s", got)
	}
	if got := inside(t, one.Namespace(), "ip", "link", "show", "eth2"); strings.Contains(got, ",UP") {
		t.Errorf("the second time enabled what the user had disabled: %s", got)
	}
}
