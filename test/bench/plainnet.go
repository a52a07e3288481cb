package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// plainNet is a logical switch with DHCP that nothing of ours made, in the databases and on the integration bridges of the cluster.
type plainNet struct {
	bench *bench
	name  string
	dhcp  string // UUID of the row
	taps  []plainTap
}

type plainTap struct{ node, device string }

// command runs a program; its words must hold no spaces but those that are meant.
func command(ctx context.Context, words ...string) (string, error) {
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, failed.Stderr)
		}
		return "", fmt.Errorf("%s: %w", strings.Join(words, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func (b *bench) nodeNamespace(node string) string { return "pb-" + clusterName + "-" + node }

func (b *bench) nbctl(ctx context.Context, args ...string) (string, error) {
	return command(ctx, append([]string{"ovn-nbctl", "--db=unix:" + filepath.Join(b.cluster.Dir(), "ovn/nb.sock")}, args...)...)
}

func (b *bench) vsctl(ctx context.Context, node string, args ...string) (string, error) {
	return command(ctx, append([]string{"ovs-vsctl", "--db=unix:" + filepath.Join(b.cluster.Dir(), "nodes", node, "ovs/db.sock")}, args...)...)
}

// plainNetwork makes the switch. Its router's address is .1 of the subnet, which must end in 0/24; nobody has it.
func (b *bench) plainNetwork(ctx context.Context, name, subnet string) (*plainNet, error) {
	router := strings.TrimSuffix(subnet, "0/24") + "1"
	if _, err := b.nbctl(ctx, "--", "--if-exists", "ls-del", name, "--", "ls-add", name); err != nil {
		return nil, err
	}
	row, err := b.nbctl(ctx, "create", "dhcp_options", "cidr="+subnet, "options:server_id="+router, "options:server_mac=0a:58:00:00:00:01",
		"options:lease_time=3600")
	return &plainNet{bench: b, name: name, dhcp: row}, err
}

// port makes a logical port; options are further columns as ovn-nbctl has them.
func (n *plainNet) port(ctx context.Context, name, mac, ip string, options ...string) error {
	_, err := n.bench.nbctl(ctx, append([]string{"lsp-add", n.name, name, "--", "lsp-set-addresses", name, mac + " " + ip,
		"--", "lsp-set-dhcpv4-options", name, n.dhcp, "--", "set", "logical_switch_port", name, "external_ids:bench=true"}, options...)...)
	return err
}

// tap makes a tap on a node, plugs it straight into the integration bridge as a logical port, and waits for the port's flows.
func (n *plainNet) tap(ctx context.Context, node, device, port string) error {
	ns := n.bench.nodeNamespace(node)
	n.taps = append(n.taps, plainTap{node, device})
	for _, line := range []string{
		"ip -n " + ns + " tuntap add " + device + " mode tap vnet_hdr",
		"nsenter --net=/run/netns/" + ns + " sysctl -qw net.ipv6.conf." + device + ".disable_ipv6=1",
		"nsenter --net=/run/netns/" + ns + " nft add table netdev bench-" + device,
		"nsenter --net=/run/netns/" + ns + " nft add chain netdev bench-" + device + " in { type filter hook ingress device " + device + " priority 0; policy drop; }",
		"ip -n " + ns + " link set " + device + " mtu 1400 up",
	} {
		if _, err := command(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	if _, err := n.bench.vsctl(ctx, node, "add-port", "br-int", device, "--", "set", "interface", device, "external_ids:iface-id="+port); err != nil {
		return err
	}
	return n.bench.until(ctx, 30*time.Second, func() error {
		out, err := n.bench.vsctl(ctx, node, "get", "interface", device, "external_ids")
		if err == nil && !strings.Contains(out, `ovn-installed="true"`) {
			err = fmt.Errorf("OVN has not installed port %s: %s", port, out)
		}
		return err
	})
}

// untap removes a tap. What is gone already does not matter: the cluster is removed after the benchmark.
func (n *plainNet) untap(ctx context.Context, node, device string) {
	ns := n.bench.nodeNamespace(node)
	_, _ = n.bench.vsctl(ctx, node, "--if-exists", "del-port", "br-int", device)
	_, _ = command(ctx, "nsenter", "--net=/run/netns/"+ns, "nft", "delete", "table", "netdev", "bench-"+device)
	_, _ = command(ctx, "ip", "-n", ns, "link", "del", device)
}

func (n *plainNet) remove(ctx context.Context) {
	for _, t := range n.taps {
		n.untap(ctx, t.node, t.device)
	}
	_, _ = n.bench.nbctl(ctx, "--if-exists", "ls-del", n.name, "--", "destroy", "dhcp_options", n.dhcp)
}

// host makes a network namespace that is a host on the switch, joined to a node's integration bridge by a veth.
func (n *plainNet) host(ctx context.Context, node, device, name, mac, address string) error {
	ns, port := n.bench.nodeNamespace(node), n.name+"-"+name
	_, _ = command(ctx, "ip", "netns", "del", name) // of a run that was killed
	if err := n.port(ctx, port, mac, address[:len(address)-len("/24")]); err != nil {
		return err
	}
	for _, line := range []string{
		"ip netns add " + name,
		"ip link add " + device + " netns " + ns + " type veth peer name eth0 netns " + name,
		"ip -n " + name + " link set eth0 address " + mac + " mtu 1400 up",
		"ip -n " + name + " addr add " + address + " dev eth0",
		"nsenter --net=/run/netns/" + name + " ethtool -K eth0 tx off",
		"nsenter --net=/run/netns/" + ns + " sysctl -qw net.ipv6.conf." + device + ".disable_ipv6=1",
		"nsenter --net=/run/netns/" + ns + " nft add table netdev bench-" + device,
		"nsenter --net=/run/netns/" + ns + " nft add chain netdev bench-" + device + " in { type filter hook ingress device " + device + " priority 0; policy drop; }",
		"ip -n " + ns + " link set " + device + " up",
	} {
		if _, err := command(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	_, err := n.bench.vsctl(ctx, node, "add-port", "br-int", device, "--", "set", "interface", device, "external_ids:iface-id="+port)
	return err
}
