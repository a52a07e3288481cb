package masquerade

import "strings"

// Sysctl is one kernel setting of the pod's network namespace.
type Sysctl struct {
	Key   string // path below /proc/sys
	Value string
}

func (s Sysctl) String() string { return s.Key + "=" + s.Value }

// Sysctls are the settings that the tap needs, in the order in which they are written, before the tap is up.
func (p Plan) Sysctls() []Sysctl {
	var all []Sysctl
	add := func(key, value string) {
		all = append(all, Sysctl{Key: "net/" + strings.ReplaceAll(key, "DEV", p.Device), Value: value})
	}
	if p.V4 != nil {
		add("ipv4/ip_forward", "1")
		// The kernel redirects when either of the two is set; a redirect would tell the guest to look for its own pod on the tap.
		add("ipv4/conf/all/send_redirects", "0")
		add("ipv4/conf/DEV/send_redirects", "0")
		add("ipv4/conf/DEV/accept_redirects", "0")
		// Processes of the pod reach the guest by 127.0.0.1; the rules keep the guest from using it the other way round.
		add("ipv4/conf/DEV/route_localnet", "1")
	}
	if p.V6 == nil {
		add("ipv6/conf/DEV/disable_ipv6", "1")
		return all
	}
	add("ipv6/conf/all/forwarding", "1")
	add("ipv6/conf/DEV/disable_ipv6", "0")
	add("ipv6/conf/DEV/addr_gen_mode", "1") // none: GatewayLinkLocal is given below, at once and without a search for duplicates
	add("ipv6/conf/DEV/accept_ra", "0")     // a guest must not route the pod
	add("ipv6/conf/DEV/accept_redirects", "0")
	return all
}
