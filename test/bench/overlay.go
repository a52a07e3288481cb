package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// seconds is how long each stream lasts, pings how many round trips are measured.
const (
	seconds = 4
	pings   = 100
)

// measureOverlay compares pods and VMs on two nodes with plain OVN ports on the same switches, in the same fabric.
func measureOverlay(ctx context.Context, b *bench) ([]row, error) {
	ns, err := b.namespace(ctx, "bench-overlay")
	if err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	plain, err := b.plainPorts(ctx)
	if err != nil {
		return nil, fmt.Errorf("plain OVN ports: %w", err)
	}
	bare, err := plain.measure(ctx)
	if err != nil {
		return nil, fmt.Errorf("plain OVN ports: %w", err)
	}
	pods, err := b.measurePods(ctx, ns.Name)
	if err != nil {
		return nil, fmt.Errorf("pods: %w", err)
	}
	guests, err := b.measureGuests(ctx, ns.Name)
	if err != nil {
		return nil, fmt.Errorf("guests: %w", err)
	}
	return []row{
		{Figure: "TCP pod → pod across nodes", Unit: "Mbit/s", Ours: pods.mbits, Bare: bare.mbits, Goal: "0.95 ×"},
		{Figure: "TCP VM → VM across nodes (guests emulated)", Unit: "Mbit/s", Ours: guests.mbits, Bare: bare.mbits},
		{Figure: "round trip pod → pod across nodes", Unit: "ms", Ours: pods.rtt, Bare: bare.rtt, Goal: "1.1 ×"},
		{Figure: "round trip VM → VM across nodes (guests emulated)", Unit: "ms", Ours: guests.rtt, Bare: bare.rtt},
	}, nil
}

type path struct {
	mbits float64
	rtt   float64 // median, ms
}

// runner runs a command line somewhere and returns its output.
type runner func(ctx context.Context, command string) (string, error)

var roundTrip = regexp.MustCompile(`time=([\d.]+) ms`)

// measurePath streams and pings from one place to an address where an iperf3 server listens.
func measurePath(ctx context.Context, run runner, ip string) (path, error) {
	mbits, err := measureSpeed(ctx, run, ip)
	if err != nil {
		return path{}, err
	}
	times, err := measureRoundTrips(ctx, run, ip)
	if err != nil {
		return path{}, err
	}
	return path{mbits: mbits, rtt: middle(times)}, nil
}

func measureSpeed(ctx context.Context, run runner, ip string) (mbits float64, err error) {
	out, err := run(ctx, fmt.Sprintf("until iperf3 -c %[1]s -t %[2]d -J >/tmp/iperf.json 2>/dev/null; do sleep 1; done; cat /tmp/iperf.json", ip, seconds))
	if err != nil {
		return 0, err
	}
	var result struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return 0, fmt.Errorf("iperf3 says %q: %w", out, err)
	}
	return result.End.Received.Bits / 1e6, nil
}

// measureRoundTrips pings. A console that leads over the network is carried by the bridge in question: so nothing is printed before ping has
// ended, and little then, and ping waits until what the last command printed has gone.
func measureRoundTrips(ctx context.Context, run runner, ip string) ([]float64, error) {
	out, err := run(ctx, fmt.Sprintf(`sleep 1; out=$(ping -c %d -i 0.01 %s); echo "$out" | grep -o 'time=.*'`, pings, ip))
	if err != nil {
		return nil, err
	}
	return roundTrips(out)
}

// roundTrips reads what ping prints for every answer, in ms.
func roundTrips(out string) ([]float64, error) {
	var all []float64
	for _, match := range roundTrip.FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			return nil, err
		}
		all = append(all, ms)
	}
	if len(all) < pings/2 {
		return nil, fmt.Errorf("%d of %d pings were answered: %s", len(all), pings, out)
	}
	return all, nil
}

// middle is the median. A mean would tell of the few that waited for a processor.
func middle(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

func (b *bench) measurePods(ctx context.Context, namespace string) (path, error) {
	server := toolboxPod(namespace, "server", "node-2")
	server.Spec.Containers[0].Command = []string{"iperf3", "-s"}
	for _, pod := range []*corev1.Pod{server, toolboxPod(namespace, "client", "node-1")} {
		if err := b.cluster.Client.Create(ctx, pod); err != nil {
			return path{}, err
		}
	}
	if err := b.waitForPods(ctx, namespace, 2); err != nil {
		return path{}, err
	}
	if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(server), server); err != nil {
		return path{}, err
	}
	return measurePath(ctx, func(ctx context.Context, command string) (string, error) {
		return b.cluster.InPod(ctx, namespace, "client", "sh", "-c", command)
	}, server.Status.PodIP)
}

func (b *bench) measureGuests(ctx context.Context, namespace string) (path, error) {
	shell, ip, err := b.guestPair(ctx, namespace)
	if err != nil {
		return path{}, err
	}
	defer shell.Close()
	return measurePath(ctx, shell.Run, ip)
}

// plain are two OVN ports that nothing of ours made: a namespace with a veth into br-int on each node.
type plain struct {
	bench *bench
	ips   []string
}

// plainNamespace must not be the name of a node's namespace.
func plainNamespace(node string) string { return clusterName + "-plain-" + node }

func (b *bench) plainPorts(ctx context.Context) (*plain, error) {
	p := &plain{bench: b}
	for _, name := range b.cluster.Nodes {
		node := &corev1.Node{}
		if err := b.cluster.Client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
			return nil, err
		}
		ip, gateway, err := lastAddress(node.Annotations["k8s.ovn.org/node-subnets"])
		if err != nil {
			return nil, err
		}
		if err := b.plug(ctx, name, ip, gateway); err != nil {
			return nil, err
		}
		p.ips = append(p.ips, ip)
	}
	return p, nil
}

// lastAddress is the highest host address of a node's IPv4 slice, which the allocator reaches last, and the slice's gateway.
func lastAddress(annotation string) (ip, gateway string, err error) {
	var subnets struct {
		Default []string `json:"default"`
	}
	if err := json.Unmarshal([]byte(annotation), &subnets); err != nil || len(subnets.Default) == 0 {
		return "", "", fmt.Errorf("node-subnets %q: %w", annotation, err)
	}
	_, network, err := net.ParseCIDR(subnets.Default[0])
	if err != nil {
		return "", "", err
	}
	first := network.IP.To4()
	last := make(net.IP, 4)
	for i := range last {
		last[i] = first[i] | ^network.Mask[i]
	}
	last[3]--
	first[3]++
	return last.String(), first.String(), nil
}

func (b *bench) plug(ctx context.Context, node, ip, gateway string) error {
	address := net.ParseIP(ip).To4()
	mac := fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", address[0], address[1], address[2], address[3])
	ns, host := plainNamespace(node), "bench0"
	nodeNS := "pb-" + clusterName + "-" + node
	ovs := "unix:" + filepath.Join(b.cluster.Dir(), "nodes", node, "ovs/db.sock")
	nb := "unix:" + filepath.Join(b.cluster.Dir(), "ovn/nb.sock")
	_ = exec.CommandContext(ctx, "ip", "netns", "del", ns).Run() // of a run that was killed
	for _, command := range []string{
		"ip netns add " + ns,
		"ip link add " + host + " netns " + nodeNS + " type veth peer name eth0 netns " + ns,
		"ip -n " + ns + " link set eth0 address " + mac + " mtu 1400 up",
		"ip -n " + ns + " addr add " + ip + "/23 dev eth0",
		"ip -n " + ns + " route add default via " + gateway,
		"nsenter --net=/run/netns/" + ns + " ethtool -K eth0 tx off",
		"nsenter --net=/run/netns/" + nodeNS + " sysctl -qw net.ipv6.conf." + host + ".disable_ipv6=1",
		"nsenter --net=/run/netns/" + nodeNS + " nft add table netdev bench",
		"nsenter --net=/run/netns/" + nodeNS + " nft add chain netdev bench in { type filter hook ingress device " + host + " priority 0; policy drop; }",
		"ip -n " + nodeNS + " link set " + host + " up",
		"ovn-nbctl --db=" + nb + " --may-exist lsp-add " + node + " bench-" + node,
		"ovn-nbctl --db=" + nb + " lsp-set-addresses bench-" + node + " " + mac + "\\ " + ip,
		"ovs-vsctl --db=" + ovs + " --may-exist add-port br-int " + host + " -- set interface " + host + " external_ids:iface-id=bench-" + node,
	} {
		words := strings.Fields(strings.ReplaceAll(command, "\\ ", "\x00"))
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "\x00", " ")
		}
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	return nil
}

func (p *plain) measure(ctx context.Context) (path, error) {
	defer p.remove(context.WithoutCancel(ctx))
	within := func(node string, command string) *exec.Cmd {
		return exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+plainNamespace(node), "sh", "-c", command)
	}
	server := within("node-2", "exec iperf3 -s")
	if err := server.Start(); err != nil {
		return path{}, err
	}
	defer stop(server)
	return measurePath(ctx, func(_ context.Context, command string) (string, error) {
		out, err := within("node-1", command).Output()
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%s: %w: %s%s", command, err, out, failed.Stderr)
		}
		return string(out), err
	}, p.ips[1])
}

func (p *plain) remove(ctx context.Context) {
	for _, node := range p.bench.cluster.Nodes {
		for _, command := range [][]string{
			{"ovs-vsctl", "--db=unix:" + filepath.Join(p.bench.cluster.Dir(), "nodes", node, "ovs/db.sock"), "--if-exists", "del-port", "br-int", "bench0"},
			{"ovn-nbctl", "--db=unix:" + filepath.Join(p.bench.cluster.Dir(), "ovn/nb.sock"), "--if-exists", "lsp-del", "bench-" + node},
			{"ip", "netns", "del", plainNamespace(node)},
		} {
			_ = exec.CommandContext(ctx, command[0], command[1:]...).Run() // the cluster is removed after the benchmark anyway
		}
	}
}
