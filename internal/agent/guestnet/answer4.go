package guestnet

import (
	"bytes"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// answer4 is the reply to a DHCPv4 message; nil when there is none. Whatever the guest asks for, it gets its one address and
// every option: a refusal would only make it wait, and some clients forget to ask for what they need.
func (c Config) answer4(request *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	var kind dhcpv4.MessageType
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	if request.OpCode != dhcpv4.OpcodeBootRequest || c.V4.Client != nil && !bytes.Equal(request.ClientHWAddr, c.V4.Client) {
		return nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(c.V4.Guest.Addr().AsSlice()))
	if err != nil {
		return nil
	}
	reply.ClientIPAddr = request.ClientIPAddr
	for _, option := range c.options4() {
		reply.UpdateOption(option)
	}
	if server, err := netip.ParseAddr(c.V4.Options.TFTPServer); err == nil && server.Is4() {
		reply.ServerIPAddr = server.AsSlice() // boot ROMs look here, not at option 66
	}
	return reply
}

func (c Config) options4() []dhcpv4.Option {
	v4 := c.V4
	options := []dhcpv4.Option{
		dhcpv4.OptSubnetMask(net.CIDRMask(v4.Guest.Bits(), 32)),
		dhcpv4.OptIPAddressLeaseTime(Lease),
		dhcpv4.OptServerIdentifier(v4.Server.AsSlice()),
	}
	add := func(wanted bool, option dhcpv4.Option) {
		if wanted {
			options = append(options, option)
		}
	}
	servers := slicesOf(c.DNS.family(netip.Addr.Is4))
	add(v4.Router.IsValid(), dhcpv4.OptRouter(v4.Router.AsSlice()))
	add(len(v4.Routes) > 0, dhcpv4.OptClasslessStaticRoute(routes(v4.Routes)...))
	add(len(servers) > 0, dhcpv4.OptDNS(servers...))
	add(c.Hostname != "", dhcpv4.OptHostName(c.Hostname))
	add(c.DNS.Domain() != "", dhcpv4.OptDomainName(c.DNS.Domain()))
	add(len(c.DNS.Search) > 0, dhcpv4.OptDomainSearch(searchLabels(c.DNS.Search)))
	add(c.MTU > 0, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, dhcpv4.Uint16(c.MTU).ToBytes()))
	add(len(v4.Options.NTP) > 0, dhcpv4.OptNTPServers(slicesOf(v4.Options.NTP)...))
	add(v4.Options.TFTPServer != "", dhcpv4.OptTFTPServerName(v4.Options.TFTPServer))
	add(v4.Options.BootFile != "", dhcpv4.OptBootFileName(v4.Options.BootFile))
	for code, value := range v4.Options.Private {
		add(true, dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), []byte(value)))
	}
	return options
}

func routes(from []Route) []*dhcpv4.Route {
	var all []*dhcpv4.Route
	for _, r := range from {
		via := net.IPv4zero
		if r.Via.IsValid() {
			via = r.Via.AsSlice()
		}
		all = append(all, &dhcpv4.Route{
			Dest:   &net.IPNet{IP: r.To.Masked().Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), 32)},
			Router: via,
		})
	}
	return all
}
