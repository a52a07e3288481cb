package guestnet

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// answer6 is the reply to a DHCPv6 message; nil when there is none. The guest gets its one address in the first identity
// association that it asks for.
func (c Config) answer6(request *dhcpv6.Message) *dhcpv6.Message {
	if request.MessageType == dhcpv6.MessageTypeReply || request.MessageType == dhcpv6.MessageTypeAdvertise || !c.forUs(request) {
		return nil
	}
	reply := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: request.TransactionID}
	if request.MessageType == dhcpv6.MessageTypeSolicit {
		reply.MessageType = dhcpv6.MessageTypeAdvertise
		if request.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			reply.MessageType = dhcpv6.MessageTypeReply
			dhcpv6.WithRapidCommit(reply)
		}
	}
	if client := request.Options.ClientID(); client != nil {
		reply.AddOption(dhcpv6.OptClientID(client))
	} else if request.MessageType != dhcpv6.MessageTypeInformationRequest {
		return nil // RFC 8415 16: discard
	}
	reply.AddOption(dhcpv6.OptServerID(c.duid()))
	c.associate(request, reply)
	if servers := slicesOf(c.DNS.family(netip.Addr.Is6)); len(servers) > 0 {
		reply.AddOption(dhcpv6.OptDNS(servers...))
	}
	if len(c.DNS.Search) > 0 {
		reply.AddOption(dhcpv6.OptDomainSearchList(searchLabels(c.DNS.Search)))
	}
	return reply
}

// associate fills the identity associations, or says that there is nothing more to say about them.
func (c Config) associate(request, reply *dhcpv6.Message) {
	switch request.MessageType {
	case dhcpv6.MessageTypeInformationRequest:
		return
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeConfirm:
		reply.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return
	}
	for i, asked := range request.Options.IANA() {
		given := &dhcpv6.OptIANA{IaId: asked.IaId}
		if i == 0 {
			given.T1, given.T2 = Lease/2, Lease*4/5
			given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: c.V6.Guest.AsSlice(), PreferredLifetime: Lease, ValidLifetime: Lease})
		} else {
			given.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "the network has one address for the guest"})
		}
		reply.AddOption(given)
	}
}

// forUs is false for a message to another server, which only the guest itself could run.
func (c Config) forUs(request *dhcpv6.Message) bool {
	server := request.Options.ServerID()
	return server == nil || server.Equal(c.duid())
}

func (c Config) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: c.V6.MAC}
}
