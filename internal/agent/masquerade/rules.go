package masquerade

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is our nftables table in the pod's namespace. It is our own, and of the inet family, so that replacing it in one
// transaction never touches the "nat" tables that a mesh's iptables rules live in.
const (
	Table  = "patchbay"
	Family = knftables.InetFamily
)

// Chains of Table. The first five hang on netfilter's hooks.
const (
	guard       = "guard"
	forward     = "forward"
	prerouting  = "prerouting"
	output      = "output"
	postrouting = "postrouting"
	preInbound  = "KUBEVIRT_PREINBOUND"
	postInbound = "KUBEVIRT_POSTINBOUND"
)

// reservedPorts never reach a guest from outside (spec/chapter9.md 9.2.1-C6).
const reservedPorts = "{ 49152, 49153 }"

// MeshPorts are the TCP ports that an Istio-compatible sidecar listens on.
var MeshPorts = []uint16{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}

// More facts of it: the port that bypasses it, and the source address of the connections it opens to the application.
const unmeshedPort = 22

var meshSource = netip.MustParseAddr("127.0.0.6")

// Rules puts into tx what replaces the whole table: either all of it is in force or the old one is.
func (p Plan) Rules(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("NAT of the virtual machine in this pod")})
	addChains(tx)
	b := rules{tx: tx, plan: p}
	b.guard()
	b.forward()
	for _, pair := range p.Pairs() {
		newInbound(&b, pair).write()
	}
}

// addChains registers the chains. DNAT comes one step before the usual priority: chains of equal priority run in the reverse
// order of their registration, and port 22 must pass a mesh's redirection whichever of the two was there first.
func addChains(tx *knftables.Transaction) {
	base := func(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) {
		tx.Add(&knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
	}
	base(guard, knftables.FilterType, knftables.PreroutingHook, knftables.ManglePriority)
	base(forward, knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority)
	base(prerouting, knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority+"-1")
	base(output, knftables.NATType, knftables.OutputHook, "-101")
	base(postrouting, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority)
	tx.Add(&knftables.Chain{Name: preInbound})
	tx.Add(&knftables.Chain{Name: postInbound})
}

// rules collects rules; every one of them counts, for people who look for lost packets.
type rules struct {
	tx   *knftables.Transaction
	plan Plan
}

func (b *rules) rule(chain string, words ...string) {
	last := len(words) - 1
	words = slices.Insert(slices.Clone(words), last, "counter")
	text := strings.Fields(strings.Join(words, " ")) // an empty match leaves no gap
	b.tx.Add(&knftables.Rule{Chain: chain, Rule: strings.Join(text, " ")})
}

func iif(dev string) string { return fmt.Sprintf("iifname %q", dev) }
func oif(dev string) string { return fmt.Sprintf("oifname %q", dev) }

// guard drops what may never arrive. New connections only: 49152 is also where many guests' own outgoing ports begin.
func (b *rules) guard() {
	b.rule(guard, iif(b.plan.Uplink), "meta l4proto { tcp, udp } th dport", reservedPorts, "ct state new", "drop")
	if b.plan.V4 != nil {
		// route_localnet would otherwise let the guest talk to what listens on the pod's loopback, such as a sidecar's admin port
		b.rule(guard, iif(b.plan.Device), "ip daddr 127.0.0.0/8", "drop")
	}
}

// forward lets into the guest only what the NAT rules chose, and out of it only what they will translate.
func (b *rules) forward() {
	for _, pair := range b.plan.Pairs() {
		b.rule(forward, iif(b.plan.Device), ipOf(pair.Guest), "saddr !=", pair.Guest.String(), "drop")
	}
	b.rule(forward, iif(b.plan.Device), "ct state invalid", "drop")
	b.rule(forward, oif(b.plan.Device), "ct state established,related", "accept")
	b.rule(forward, oif(b.plan.Device), "ct status dnat", "accept")
	b.rule(forward, oif(b.plan.Device), "drop")
}

func ipOf(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// inbound writes the translation rules of one family.
type inbound struct {
	*rules
	pair    *Pair
	ip      string   // ip or ip6
	nfproto string   // ipv4 or ipv6
	dnat    string   // verdict
	snat    string   // verdict
	sources []string // processes of the pod, whose connections get the gateway's address
	targets []string // what processes of the pod call the guest
}

// newInbound leaves out processes of the pod for IPv6: Linux never takes a packet for ::1 from another device than lo
// (measured with 6.18), so an answer of the guest could not come back. Without rules such a connection is refused at once and
// callers of "localhost" go on to 127.0.0.1; with them it would hang.
func newInbound(b *rules, pair *Pair) *inbound {
	in := &inbound{
		rules: b, pair: pair, ip: ipOf(pair.Guest), nfproto: "ipv6",
		dnat: fmt.Sprintf("dnat %s to %s", ipOf(pair.Guest), pair.Guest),
		snat: fmt.Sprintf("snat %s to %s", ipOf(pair.Guest), pair.Gateway.Addr()),
	}
	if in.ip == "ip" {
		in.nfproto = "ipv4"
		in.sources, in.targets = []string{"127.0.0.1"}, []string{"127.0.0.1"}
		if b.plan.Mesh {
			in.sources = append(in.sources, meshSource.String())
			in.targets = append(in.targets, pair.Pod.String())
		}
	}
	return in
}

func (in *inbound) write() {
	p := in.plan
	in.rule(postrouting, in.ip, "saddr", in.pair.Guest.String(), "masquerade")
	// only frames for the pod itself: broadcasts and multicasts are the pod network's, not the guest's
	in.rule(prerouting, iif(p.Uplink), "meta nfproto", in.nfproto, "meta pkttype host", "jump "+preInbound)
	if !p.Mesh {
		in.rule(prerouting, iif(p.Device), in.ip, "daddr", in.pair.Pod.String(), "jump "+preInbound) // the guest calls its own pod address
	}
	if in.sources != nil {
		in.rule(postrouting, oif(p.Device), "meta nfproto", in.nfproto, "jump "+postInbound)
	}
	if len(p.Ports) == 0 {
		in.everything()
		return
	}
	for _, port := range p.Ports {
		in.port(port)
	}
}

func (in *inbound) everything() {
	if in.plan.Mesh {
		in.admit(Port{Protocol: "tcp", First: unmeshedPort, Last: unmeshedPort}.match())
		for _, chain := range []string{output, postInbound} {
			if in.sources != nil {
				in.rule(chain, "tcp dport", portSet(MeshPorts), "ip saddr 127.0.0.1", "return")
			}
		}
	} else {
		in.admit("")
	}
	in.loopback("")
}

func (in *inbound) port(port Port) {
	switch {
	case !in.plan.Mesh:
		in.admit(port.match())
	case port.Protocol == "tcp" && port.has(unmeshedPort):
		in.admit(Port{Protocol: "tcp", First: unmeshedPort, Last: unmeshedPort}.match())
	}
	in.loopback(port.match())
}

// admit lets into the guest what comes from outside and matches.
func (in *inbound) admit(match string) {
	in.rule(preInbound, "meta nfproto", in.nfproto, match, in.dnat)
}

// loopback lets the pod's processes reach the guest.
func (in *inbound) loopback(match string) {
	if in.sources == nil {
		return
	}
	in.rule(postInbound, match, in.ip, "saddr", set(in.sources), in.snat)
	in.rule(output, in.ip, "daddr", set(in.targets), match, in.dnat)
}

func set(members []string) string { return "{ " + strings.Join(members, ", ") + " }" }

// portSet is ports as nftables writes a set of them.
func portSet(ports []uint16) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = strconv.Itoa(int(p))
	}
	return "{ " + strings.Join(words, ", ") + " }"
}
