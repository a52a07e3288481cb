package guestnet

import (
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
)

// routerLifetime is the longest that fits (RFC 8319). The router never moves, and the guest must keep its default route while
// the agent is being replaced.
const routerLifetime = 65535 * time.Second

// advertisement makes a guest ask for its address by DHCPv6 and use Device as its router. Without it most guests do neither.
func (c Config) advertisement() *ndp.RouterAdvertisement {
	options := []ndp.Option{
		&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: c.V6.MAC},
		&ndp.PrefixInformation{
			PrefixLength:      uint8(c.V6.Prefix.Bits()),
			Prefix:            c.V6.Prefix.Masked().Addr(),
			OnLink:            true, // not autonomous: only the one address is translated
			ValidLifetime:     ndp.Infinity,
			PreferredLifetime: ndp.Infinity,
		},
	}
	if c.MTU > 0 {
		options = append(options, ndp.NewMTU(uint32(c.MTU)))
	}
	if servers := c.DNS.family(netip.Addr.Is6); len(servers) > 0 {
		options = append(options, &ndp.RecursiveDNSServer{Lifetime: routerLifetime, Servers: servers})
	}
	if len(c.DNS.Search) > 0 {
		options = append(options, &ndp.DNSSearchList{Lifetime: routerLifetime, DomainNames: c.DNS.Search})
	}
	return &ndp.RouterAdvertisement{
		CurrentHopLimit:      64,
		ManagedConfiguration: true,
		OtherConfiguration:   true,
		RouterLifetime:       routerLifetime,
		Options:              options,
	}
}
