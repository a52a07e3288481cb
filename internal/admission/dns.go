package admission

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Limits of the C library's resolver, which Kubernetes enforces on pods too.
const (
	maxNameservers = 3
	maxSearches    = 6
	maxSearchChars = 256
)

var dnsPolicies = []corev1.DNSPolicy{corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone, ""}

func (c *checker) dns() {
	if policy := c.spec.DNSPolicy; !slices.Contains(dnsPolicies, policy) {
		c.notSupported(c.root.Child("dnsPolicy"), "DNSPolicy: %s is not supported, valid values: %v", policy, dnsPolicies)
	}
	at, config := c.root.Child("dnsConfig"), c.spec.DNSConfig
	if c.spec.DNSPolicy == corev1.DNSNone {
		if config == nil {
			c.required(at, "must provide `dnsConfig` when `dnsPolicy` is None")
			return
		}
		if len(config.Nameservers) == 0 {
			c.required(at.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
		}
	}
	if config != nil {
		c.dnsConfig(config)
	}
}

func (c *checker) dnsConfig(config *corev1.PodDNSConfig) {
	at := c.root.Child("dnsConfig")
	if len(config.Nameservers) > maxNameservers {
		c.invalid(at.Child("nameservers"), "must not have more than %d nameservers: %s", maxNameservers, config.Nameservers)
	}
	for _, server := range config.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			c.invalid(at.Child("nameservers"), "must be valid IP address: %s", server)
		}
	}
	if len(config.Searches) > maxSearches {
		c.invalid(at.Child("searches"), "must not have more than %d search paths", maxSearches)
	}
	if len(strings.Join(config.Searches, " ")) > maxSearchChars {
		c.invalid(at.Child("searches"), "must not have more than %d characters (including spaces) in the search list", maxSearchChars)
	}
	for _, option := range config.Options {
		if option.Name == "" {
			c.required(at.Child("options"), "Option.Name must not be empty")
		}
	}
}
