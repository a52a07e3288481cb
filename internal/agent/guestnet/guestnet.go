// Package guestnet tells a guest its addresses: a DHCPv4 server, a DHCPv6 server and a router's advertisements on one device of
// a pod's network namespace (spec: KubeVirt's embedded DHCP server). What is answered is a pure function of Config; Listen and
// Serve are the sockets around it. The package must not make devices or addresses.
package guestnet

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/rfc1035label"
	virtv1 "kubevirt.io/api/core/v1"
)

// Lease is how long an address is lent: forever in practice, because it never changes while the guest lives.
const Lease = 999 * 24 * time.Hour

// Config is everything a guest may learn.
type Config struct {
	Device   string // in the pod's namespace
	MTU      int    // bytes; 0: not announced
	Hostname string
	DNS      DNS
	V4       *V4 // nil: no DHCPv4
	V6       *V6 // nil: no DHCPv6 and no router advertisements
}

// V4 is the DHCPv4 side.
type V4 struct {
	Server  netip.Addr       // on Device
	Guest   netip.Prefix     // with the length that the guest shall use
	Router  netip.Addr       // invalid: none
	Routes  []Route          // option 121, in this order; the default route belongs last
	Client  net.HardwareAddr // the only client that is served; nil: anyone
	Options Options
}

// Route is a classless static route.
type Route struct {
	To  netip.Prefix
	Via netip.Addr // invalid: on the link
}

// V6 is the IPv6 side. The router is Device's link-local address.
type V6 struct {
	Guest  netip.Addr
	Prefix netip.Prefix     // on the link
	MAC    net.HardwareAddr // of Device; also the server's identity
}

// Options are DHCPv4 options that the user chose.
type Options struct {
	NTP        []netip.Addr
	TFTPServer string
	BootFile   string
	Private    map[uint8]string // 224-254
}

// NewOptions reads the user's DHCP options. An error is final: only a changed specification helps.
func NewOptions(from *virtv1.DHCPOptions) (Options, error) {
	if from == nil {
		return Options{}, nil
	}
	o := Options{TFTPServer: from.TFTPServerName, BootFile: from.BootFileName}
	for _, server := range from.NTPServers {
		addr, err := netip.ParseAddr(server)
		if err != nil || !addr.Is4() {
			return Options{}, fmt.Errorf("dhcpOptions.ntpServers: %q is not an IPv4 address; DHCP carries no names of NTP servers", server)
		}
		o.NTP = append(o.NTP, addr)
	}
	for _, p := range from.PrivateOptions {
		if p.Option < 224 || p.Option > 254 {
			return Options{}, fmt.Errorf("dhcpOptions.privateOptions: option %d is not private; use 224-254", p.Option)
		}
		if len(p.Value) > maxOption {
			return Options{}, fmt.Errorf("dhcpOptions.privateOptions: the value of option %d has %d bytes; %d fit", p.Option, len(p.Value), maxOption)
		}
		if o.Private == nil {
			o.Private = map[uint8]string{}
		}
		o.Private[uint8(p.Option)] = p.Value
	}
	return o, nil
}

// maxOption is how long a DHCPv4 option's value may be, in bytes.
const maxOption = 255

// Validate finds what no server could announce.
func (c Config) Validate() error {
	if n := len(searchLabels(c.DNS.Search).ToBytes()); n > maxOption {
		return fmt.Errorf("the DNS search list takes %d bytes in DHCP and only %d fit; shorten dnsConfig.searches", n, maxOption)
	}
	return nil
}

func searchLabels(domains []string) *rfc1035label.Labels {
	return &rfc1035label.Labels{Labels: domains}
}

func slicesOf(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range addrs {
		ips = append(ips, a.AsSlice())
	}
	return ips
}
