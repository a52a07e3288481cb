// Package dns is the cluster's name server: CoreDNS as a library, with the few of its plugins that a cluster needs. It answers
// for services and pods from the Kubernetes API, in both address families and in reverse, and passes other names on to the
// host's resolvers where there are any.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/miekg/dns"
)

// Config is what a name server needs.
type Config struct {
	Domain     string // of the cluster, "cluster.local"
	Kubeconfig string
	Listen     []netip.AddrPort
	Ready      netip.AddrPort // HTTP address that says at /ready whether the API was read
	Upstreams  []netip.AddrPort
}

// Run answers queries until the context ends.
func Run(ctx context.Context, c Config) error {
	corefile, err := Corefile(c)
	if err != nil {
		return err
	}
	dnsserver.Quiet, caddy.Quiet = true, true
	instance, err := caddy.Start(caddy.CaddyfileInput{Filepath: "patchbay", Contents: []byte(corefile), ServerTypeName: "dns"})
	if err != nil {
		return fmt.Errorf("start the name server: %w", err)
	}
	<-ctx.Done()
	return errors.Join(append(instance.ShutdownCallbacks(), instance.Stop())...)
}

// Corefile is CoreDNS's configuration. Without upstreams only the cluster's zones are served: a query for another name is
// refused at once, so that a program does not wait for an answer that cannot come.
func Corefile(c Config) (string, error) {
	if len(c.Listen) == 0 {
		return "", errors.New("the name server needs at least one address to listen on")
	}
	zones := []string{c.Domain, "in-addr.arpa", "ip6.arpa"}
	served, elsewhere := zones, ""
	if len(c.Upstreams) > 0 {
		served = []string{"."}
		elsewhere = "\t\tfallthrough in-addr.arpa ip6.arpa\n"
	}
	var out strings.Builder
	for n, group := range byPort(c.Listen) {
		var keys []string
		for _, zone := range served {
			keys = append(keys, fmt.Sprintf("%s:%d", zone, group[0].Port()))
		}
		fmt.Fprintf(&out, "%s {\n\tbind %s\n\terrors\n", strings.Join(keys, " "), join(group, func(a netip.AddrPort) string { return a.Addr().String() }))
		if n == 0 && c.Ready.IsValid() {
			fmt.Fprintf(&out, "\tready %s\n", c.Ready)
		}
		out.WriteString(tenantsDirective(c.Kubeconfig))
		fmt.Fprintf(&out, "\tkubernetes %s {\n\t\tkubeconfig %s\n\t\tpods verified\n\t\tttl 5\n%s\t}\n", strings.Join(zones, " "), c.Kubeconfig, elsewhere)
		if len(c.Upstreams) > 0 {
			// The cluster's own names come from memory anyway, and must not be stale.
			fmt.Fprintf(&out, "\tcache 30 {\n\t\tdisable success %s\n\t\tdisable denial %s\n\t}\n", c.Domain, c.Domain)
			fmt.Fprintf(&out, "\tforward . %s {\n\t\tmax_concurrent 1000\n\t}\n", join(c.Upstreams, netip.AddrPort.String))
		}
		out.WriteString("}\n")
	}
	return out.String(), nil
}

// byPort groups addresses that can share a server block.
func byPort(addresses []netip.AddrPort) [][]netip.AddrPort {
	var groups [][]netip.AddrPort
	for _, a := range addresses {
		n := slices.IndexFunc(groups, func(g []netip.AddrPort) bool { return g[0].Port() == a.Port() })
		if n < 0 {
			groups = append(groups, nil)
			n = len(groups) - 1
		}
		groups[n] = append(groups[n], a)
	}
	return groups
}

func join(addresses []netip.AddrPort, text func(netip.AddrPort) string) string {
	parts := make([]string, len(addresses))
	for n, a := range addresses {
		parts[n] = text(a)
	}
	return strings.Join(parts, " ")
}

// HostResolvers are the name servers of a resolv.conf that can be reached from here, apart from our own addresses. A resolver
// on the host's loopback is not: the name server usually runs in a network namespace of its own.
func HostResolvers(path string, own []netip.AddrPort) ([]netip.AddrPort, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's resolvers: %w", err)
	}
	var out []netip.AddrPort
	for _, server := range conf.Servers {
		ip, err := netip.ParseAddr(server)
		if err != nil || ip.IsLoopback() {
			continue
		}
		address := netip.AddrPortFrom(ip, 53)
		if !slices.Contains(own, address) && routed(address) {
			out = append(out, address)
		}
	}
	return out, nil
}

// routed says whether there is a route. A UDP socket connects without sending anything.
func routed(address netip.AddrPort) bool {
	conn, err := net.Dial("udp", address.String())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
