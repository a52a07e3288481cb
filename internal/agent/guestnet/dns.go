package guestnet

import (
	"net/netip"
	"strings"
)

// DNS is what a guest knows of name resolution.
type DNS struct {
	Servers []netip.Addr
	Search  []string
}

// What a pod without a resolver hands on.
var (
	fallbackServer = netip.MustParseAddr("8.8.8.8")
	fallbackSearch = "cluster.local"
)

// ParseResolvConf reads a pod's resolv.conf the way its guest shall see it. With a subdomain, the namespace's domain of it is
// searched first, so that members of the same headless service find each other by host name.
func ParseResolvConf(text, subdomain string) DNS {
	var dns DNS
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(words[1]); err == nil {
				dns.Servers = append(dns.Servers, addr)
			}
		case "search":
			dns.Search = nil // the last line counts
			for _, domain := range words[1:] {
				dns.Search = append(dns.Search, strings.ToLower(strings.TrimSuffix(domain, ".")))
			}
		}
	}
	if dns.Servers == nil {
		dns.Servers = []netip.Addr{fallbackServer}
	}
	if dns.Search == nil {
		dns.Search = []string{fallbackSearch}
	}
	return dns.withSubdomain(subdomain)
}

func (d DNS) withSubdomain(subdomain string) DNS {
	if subdomain == "" {
		return d
	}
	var services []string
	for _, domain := range d.Search {
		if strings.Contains(domain, ".svc.") {
			services = append(services, domain)
		}
	}
	own := longest(services)
	if own != "" && !strings.HasPrefix(own, subdomain+".") {
		d.Search = append([]string{subdomain + "." + own}, d.Search...)
	}
	return d
}

// Domain is the guest's own domain.
func (d DNS) Domain() string { return longest(d.Search) }

func longest(domains []string) string {
	var found string
	for _, domain := range domains {
		if len(domain) > len(found) {
			found = domain
		}
	}
	return found
}

// family are the servers of one family.
func (d DNS) family(is func(netip.Addr) bool) []netip.Addr {
	var servers []netip.Addr
	for _, server := range d.Servers {
		if is(server) {
			servers = append(servers, server)
		}
	}
	return servers
}
