package nic

import (
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"

	"patchbay/guest/guestd/netconfig"
)

// runDHCP6 waits for a router to ask for DHCPv6 (or starts at once when the seed says so), and gets addresses anew when half
// of their life is over.
func (w *worker) runDHCP6() {
	if w.config.DHCP6 == netconfig.Auto {
		select {
		case <-w.managed:
		case <-w.ctx.Done():
			return
		}
	}
	pause := firstPause
	for w.ctx.Err() == nil {
		again, err := w.lease6(pause)
		if err != nil {
			w.failed("DHCPv6", err)
			w.wait(pause, w.cable)
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		w.wait(again, w.cable)
	}
}

// lease6 asks for one address and applies the answer; it returns when to ask again.
func (w *worker) lease6(timeout time.Duration) (time.Duration, error) {
	client, err := nclient6.New(w.name(), nclient6.WithTimeout(timeout), nclient6.WithRetry(1))
	if err != nil {
		return 0, err // mostly: the link-local address is not ready
	}
	defer client.Close()
	mac := w.link.Attrs().HardwareAddr
	var iaid [4]byte
	copy(iaid[:], mac[max(0, len(mac)-4):])
	reply, err := client.RapidSolicit(w.ctx, dhcpv6.WithIAID(iaid))
	if err != nil {
		return 0, err
	}
	return w.apply6(reply)
}

func (w *worker) apply6(reply *dhcpv6.Message) (time.Duration, error) {
	if status := reply.Options.Status(); status != nil && status.StatusCode != 0 {
		return 0, errors.New("the server says " + status.String())
	}
	life := 24 * time.Hour
	var address netip.Prefix
	for _, ia := range reply.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			ip, _ := netip.AddrFromSlice(a.IPv6Addr)
			address = netip.PrefixFrom(ip, 128)
			life = min(life, a.ValidLifetime)
			if err := w.address(address, int(a.ValidLifetime.Seconds())); err != nil {
				return 0, err
			}
		}
	}
	if !address.IsValid() {
		return 0, errors.New("the server's answer holds no address")
	}
	var search []string
	if list := reply.Options.DomainSearchList(); list != nil {
		search = list.Labels
	}
	if !w.config.NoDNS {
		w.setDNS("dhcp6", addrs(reply.Options.DNS()), search)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.DHCP6, w.state.Error = answer6(reply, address), ""
	return max(life/2, firstPause), nil
}

func answer6(reply *dhcpv6.Message, address netip.Prefix) *Answer {
	out := &Answer{Address: address, Options: map[string]string{}}
	if id := reply.Options.ServerID(); id != nil {
		out.Server = id.String()
	}
	for _, o := range reply.Options.Options {
		out.Options[strconv.Itoa(int(o.Code()))] = o.String()
	}
	return out
}
