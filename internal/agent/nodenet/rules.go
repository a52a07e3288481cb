package nodenet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Marks on connections whose target we chose here and not in OVN.
const (
	markKeepClient = "0x50420001" // externalTrafficPolicy Local: the endpoint sees the client's address
	markMasquerade = "0x50420002" // an endpoint outside the overlay: the answer must come back to this node
)

// natChain is a base chain's place. The name "dstnat" is not valid in output, so it is a number everywhere.
const (
	beforeRouting = "-100"
	afterRouting  = "100"
)

// family is one of the two address families as nft spells it.
type family struct {
	is4      bool
	suffix   string // of map and chain names
	ip       string // keyword for the header, and for nat's family
	addrType string
	nfproto  string
	loopback string
}

var families = []family{
	{true, "4", "ip", "ipv4_addr", "ipv4", "127.0.0.0/8"},
	{false, "6", "ip6", "ipv6_addr", "ipv6", "::1"},
}

// Rules computes the whole table. A node port wins over a pod's host port with the same number.
//
// A service's outside addresses and node ports are translated to its cluster IP and sent into the overlay, where OVN picks
// an endpoint. Three kinds of traffic cannot take that way and get a chain per service port that picks the endpoint here:
// externalTrafficPolicy Local (OVN would pick endpoints of other nodes), services with endpoints outside the overlay, when
// the client is this node (OVN would send the packet back to where it came from, with a source address that is local
// here), and load balancers with source ranges.
//
// Legs are the addresses of this node's pods that only the node itself may reach.
func Rules(p Plan, services []service, hostPorts []hostPort, legs []netip.Addr) Ruleset {
	r := Ruleset{Chains: map[string]Chain{}, Maps: map[string]Map{}}
	for _, f := range families {
		r.Maps["tenant-ips"+f.suffix] = Map{Type: f.addrType, Elements: map[string]string{}}
		r.Maps["overlay"+f.suffix] = Map{Type: f.addrType, Interval: true, Elements: rangesOf(f, p.Overlay)}
		target := f.addrType + " . inet_service"
		byIP, byPort := f.addrType+" . inet_proto . inet_service : ", "inet_proto . inet_service : "
		for name, kind := range map[string]string{
			"cluster-ips": byIP + "verdict", "local-ips": byIP + "verdict", "direct-ips": byIP + "verdict", "ips": byIP + target,
			"local-ports": byPort + "verdict", "direct-ports": byPort + "verdict", "ports": byPort + target,
		} {
			r.Maps[name+f.suffix] = Map{Type: kind, Elements: map[string]string{}}
		}
	}
	r.addFixedChains(p)
	r.addLocked(legs)
	for _, s := range services {
		for _, f := range families {
			r.addService(p, f, s)
		}
	}
	for _, h := range hostPorts {
		for _, f := range families {
			r.addHostPort(f, h)
		}
	}
	return r
}

func rangesOf(f family, prefixes []netip.Prefix) map[string]string {
	out := map[string]string{}
	for _, p := range prefixes {
		if p.Addr().Is4() == f.is4 {
			out[p.String()] = ""
		}
	}
	return out
}

func (r Ruleset) addFixedChains(p Plan) {
	fromPods, toPods := fmt.Sprintf("iifname %q", ManagementDevice), fmt.Sprintf("oifname %q", ManagementDevice)
	r.Chains["prerouting"] = Chain{Hook: knftables.PreroutingHook, Priority: beforeRouting, Rules: []string{
		// From inside the cluster an outside address means every endpoint, whatever the external policy says.
		strings.Replace(fromPods, "iifname", "iifname !=", 1) + " jump local",
		"jump external",
	}}
	r.Chains["output"] = Chain{Hook: knftables.OutputHook, Priority: beforeRouting}
	r.Chains["postrouting"] = Chain{Hook: knftables.PostroutingHook, Priority: afterRouting, Rules: []string{
		toPods + " goto to-pods",
		`oifname != "lo" goto to-world`,
	}}
	toWorld := []string{"ct mark " + markMasquerade + " masquerade fully-random"}
	toPodsRules := []string{"ct mark " + markKeepClient + " return"}
	var local, external, output []string
	for _, f := range families {
		byIP := f.ip + " daddr . meta l4proto . th dport"
		atNode := fmt.Sprintf("meta nfproto %s fib daddr type local %s daddr != %s", f.nfproto, f.ip, f.loopback)
		local = append(local, byIP+" vmap @local-ips"+f.suffix, atNode+" meta l4proto . th dport vmap @local-ports"+f.suffix)
		external = append(external,
			byIP+" vmap @direct-ips"+f.suffix,
			atNode+" meta l4proto . th dport vmap @direct-ports"+f.suffix,
			fmt.Sprintf("dnat %s to %s map @ips%s", f.ip, byIP, f.suffix),
			fmt.Sprintf("%s dnat %s to meta l4proto . th dport map @ports%s", atNode, f.ip, f.suffix))
		output = append(output, byIP+" vmap @cluster-ips"+f.suffix)
		toWorld = append(toWorld, fmt.Sprintf("%s saddr @overlay%s %s daddr != @overlay%s masquerade fully-random", f.ip, f.suffix, f.ip, f.suffix))
		if entry, ok := addrOf(f, p.Entries); ok {
			toPodsRules = append(toPodsRules, fmt.Sprintf("%s daddr @tenant-ips%s snat %s to %s", f.ip, f.suffix, f.ip, entry))
		}
		// Pods answer what comes from the node's address to the node it came through.
		if own, ok := p.ip(f.is4); ok {
			toPodsRules = append(toPodsRules, fmt.Sprintf("%s saddr != %s snat %s to %s", f.ip, own, f.ip, own))
		}
	}
	r.setRules("output", append(output, "jump external"))
	r.Chains["local"] = Chain{Rules: local}
	r.Chains["external"] = Chain{Rules: external}
	r.Chains["to-pods"] = Chain{Rules: toPodsRules}
	r.Chains["to-world"] = Chain{Rules: toWorld}
}

func (r Ruleset) setRules(chain string, rules []string) {
	c := r.Chains[chain]
	c.Rules = rules
	r.Chains[chain] = c
}

func (r Ruleset) addService(p Plan, f family, s service) {
	clusterIP, ok := addrOf(f, s.clusterIPs)
	if !ok {
		return
	}
	if s.tenant {
		r.Maps["tenant-ips"+f.suffix].Elements[clusterIP.String()] = ""
	}
	for _, port := range s.ports {
		e := exposure{Ruleset: r, plan: p, family: f, service: s, port: port, clusterIP: clusterIP}
		e.add()
	}
}

func addrOf(f family, addrs []netip.Addr) (netip.Addr, bool) {
	for _, a := range addrs {
		if a.Is4() == f.is4 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// exposure is one service port in one family.
type exposure struct {
	Ruleset
	plan      Plan
	family    family
	service   service
	port      servicePort
	clusterIP netip.Addr
}

func (e exposure) add() {
	toOVN := fmt.Sprintf("%s . %d", e.clusterIP, e.port.port)
	direct := e.directChain()
	for _, ip := range e.service.addresses {
		e.addIP(ip, direct, toOVN)
	}
	for _, ip := range e.service.balancers {
		e.addIP(ip, e.guarded(direct), toOVN)
	}
	if e.port.nodePort != 0 {
		e.set("ports", e.portKey(), toOVN)
		if direct != "" {
			e.set("direct-ports", e.portKey(), direct)
		}
	}
	if direct != "" {
		e.set("cluster-ips", e.ipKey(e.clusterIP), direct)
	}
	if e.service.local {
		e.addLocal()
	}
}

func (e exposure) addIP(ip netip.Addr, chain, toOVN string) {
	if ip.Is4() != e.family.is4 {
		return
	}
	if chain != "" {
		e.set("direct-ips", e.ipKey(ip), chain)
		return
	}
	e.set("ips", e.ipKey(ip), toOVN)
}

// directChain is the verdict for a service whose endpoints are not all in the overlay; empty for others.
func (e exposure) directChain() string {
	all := e.endpoints(func(endpoint) bool { return true })
	if !slices.ContainsFunc(all, func(t netip.AddrPort) bool { return !contains(e.plan.Overlay, t.Addr()) }) {
		return ""
	}
	return e.chain("direct", "ct mark set "+markMasquerade, e.choose(all))
}

// guarded puts the check of a load balancer's source ranges before a verdict; an empty one stands for OVN.
func (e exposure) guarded(direct string) string {
	check := e.sourceCheck()
	if check == "" {
		return direct
	}
	next := direct
	if next == "" {
		next = e.choose([]netip.AddrPort{netip.AddrPortFrom(e.clusterIP, e.port.port)})
	}
	return e.chain("guard", check, next)
}

func (e exposure) sourceCheck() string {
	if len(e.service.sources) == 0 {
		return ""
	}
	var ranges []string
	for _, p := range e.service.sources {
		if p.Addr().Is4() == e.family.is4 {
			ranges = append(ranges, p.String())
		}
	}
	if len(ranges) == 0 {
		return "drop"
	}
	return fmt.Sprintf("%s saddr != { %s } drop", e.family.ip, strings.Join(ranges, ", "))
}

// addLocal sends what comes from outside to this node's endpoints, and drops it when there are none. Endpoints on a tenant's
// network are reached through the network's gateway only, which may pick any of them and not see the client's address.
func (e exposure) addLocal() {
	verdict := "drop"
	here := e.endpoints(func(p endpoint) bool { return p.here })
	switch {
	case len(here) > 0 && e.service.tenant:
		return
	case len(here) > 0:
		verdict = e.chain("local", "ct mark set "+markKeepClient, e.choose(here))
	}
	for _, ip := range e.service.addresses {
		e.addLocalIP(ip, verdict)
	}
	guarded := verdict
	if check := e.sourceCheck(); check != "" && verdict != "drop" {
		guarded = e.chain("local-guard", check, verdict)
	}
	for _, ip := range e.service.balancers {
		e.addLocalIP(ip, guarded)
	}
	if e.port.nodePort != 0 {
		e.set("local-ports", e.portKey(), verdict)
	}
}

func (e exposure) addLocalIP(ip netip.Addr, verdict string) {
	if ip.Is4() == e.family.is4 {
		e.set("local-ips", e.ipKey(ip), verdict)
	}
}

// chain adds a chain of this service port and returns the verdict that goes there.
func (e exposure) chain(kind string, rules ...string) string {
	name := fmt.Sprintf("%s/%s/%s/%s/%d/%s", kind, e.service.key.Namespace, e.service.key.Name, e.port.protocol, e.port.port, e.family.ip)
	e.Chains[name] = Chain{Rules: rules}
	return "goto " + name
}

// choose is the rule that sends a new connection to one of the targets.
func (e exposure) choose(targets []netip.AddrPort) string {
	to := fmt.Sprintf("meta l4proto %s dnat %s to ", e.port.protocol, e.family.ip)
	if len(targets) == 1 {
		return to + targets[0].String()
	}
	index := fmt.Sprintf("numgen random mod %d", len(targets))
	if e.service.affinity {
		index = fmt.Sprintf("jhash %s saddr mod %d", e.family.ip, len(targets))
	}
	parts := make([]string, len(targets))
	for n, t := range targets {
		parts[n] = fmt.Sprintf("%d : %s . %d", n, t.Addr(), t.Port())
	}
	return to + index + " map { " + strings.Join(parts, ", ") + " }"
}

func (e exposure) endpoints(wanted func(endpoint) bool) []netip.AddrPort {
	return e.port.choose(func(p endpoint) bool { return p.address.Addr().Is4() == e.family.is4 && wanted(p) })
}

func (e exposure) set(name, key, value string) { e.Maps[name+e.family.suffix].Elements[key] = value }

func (e exposure) ipKey(ip netip.Addr) string {
	return fmt.Sprintf("%s . %s . %d", ip, e.port.protocol, e.port.port)
}

func (e exposure) portKey() string { return fmt.Sprintf("%s . %d", e.port.protocol, e.port.nodePort) }

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
