package nic

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"

	"patchbay/guest/guestd/netconfig"
)

// asked are the options that the guest wants; servers may send more.
var asked = []dhcpv4.OptionCode{
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName, dhcpv4.OptionDomainName,
	dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
	dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName,
}

// Pauses between attempts to get a lease. Short at first: a network that is being made answers soon.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 16 * time.Second
)

// runDHCP4 gets a lease, keeps it, and gets a new one when it is lost or the cable was out.
func (w *worker) runDHCP4() {
	pause := firstPause
	for w.ctx.Err() == nil {
		lease, err := w.lease4(pause)
		if err != nil {
			w.failed("DHCPv4", err)
			w.wait(pause, w.cable)
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		for lease != nil {
			lease = w.keep4(lease)
		}
	}
}

func (w *worker) lease4(timeout time.Duration) (*nclient4.Lease, error) {
	client, err := nclient4.New(w.name(), nclient4.WithTimeout(timeout), nclient4.WithRetry(1))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	lease, err := client.Request(w.ctx, dhcpv4.WithRequestedOptions(asked...), withHostname)
	if err != nil {
		return nil, err
	}
	return lease, w.apply4(lease.ACK)
}

func withHostname(m *dhcpv4.DHCPv4) {
	if name, err := os.Hostname(); err == nil {
		m.UpdateOption(dhcpv4.OptHostName(name))
	}
}

// keep4 waits until half of the lease is over and extends it. It returns nil when a new one must be got from the start.
func (w *worker) keep4(lease *nclient4.Lease) *nclient4.Lease {
	total := lease.ACK.IPAddressLeaseTime(time.Hour)
	if cable := w.wait(lease.ACK.IPAddressRenewalTime(total/2), w.cable); cable || w.ctx.Err() != nil {
		return nil
	}
	end := lease.CreationTime.Add(total)
	for time.Now().Before(end) && w.ctx.Err() == nil {
		next, err := w.renew4(lease)
		if err == nil {
			return next
		}
		w.failed("extend the DHCPv4 lease", err)
		if w.wait(max(time.Until(end)/4, firstPause), w.cable) {
			return nil
		}
	}
	if w.ctx.Err() == nil {
		w.drop(prefix4(lease.ACK))
	}
	return nil
}

func (w *worker) renew4(lease *nclient4.Lease) (*nclient4.Lease, error) {
	client, err := nclient4.New(w.name(), nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(2))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	next, err := client.Renew(w.ctx, lease, dhcpv4.WithRequestedOptions(asked...), withHostname)
	if err != nil {
		return nil, err
	}
	return next, w.apply4(next.ACK)
}

// wait returns after a time, or with true when the channel speaks.
func (w *worker) wait(d time.Duration, c <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
	case <-w.ctx.Done():
	}
	return false
}

// apply4 puts an answer into effect.
func (w *worker) apply4(ack *dhcpv4.DHCPv4) error {
	prefix := prefix4(ack)
	if !prefix.IsValid() {
		return fmt.Errorf("the server's answer holds no address")
	}
	if old := w.leased4(); old.IsValid() && old != prefix {
		w.drop(old)
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && w.config.MTU == 0 && mtu >= 576 {
		if err := netlink.LinkSetMTU(w.link, int(mtu)); err != nil {
			return fmt.Errorf("MTU %d from DHCP on %s: %w", mtu, w.name(), err)
		}
	}
	if err := w.address(prefix, int(ack.IPAddressLeaseTime(time.Hour).Seconds())); err != nil {
		return err
	}
	if !w.config.NoRoutes {
		for _, r := range routes4(ack, prefix, w.metric()) {
			if err := w.route(r); err != nil {
				return err
			}
		}
	}
	if !w.config.NoDNS {
		w.setDNS("dhcp4", addrs(ack.DNS()), search4(ack))
	}
	if name := ack.HostName(); name != "" {
		w.hostname(name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.DHCP4, w.state.Error = answer4(ack, prefix), ""
	return nil
}

func (w *worker) leased4() netip.Prefix {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.DHCP4 == nil {
		return netip.Prefix{}
	}
	return w.state.DHCP4.Address
}

// drop removes an address that is no longer ours.
func (w *worker) drop(p netip.Prefix) {
	if err := netlink.AddrDel(w.link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		w.failed("remove address "+p.String(), err)
	}
}

func prefix4(ack *dhcpv4.DHCPv4) netip.Prefix {
	a, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || a.IsUnspecified() {
		return netip.Prefix{}
	}
	bits := 32
	if mask := ack.SubnetMask(); mask != nil {
		bits, _ = mask.Size()
	}
	return netip.PrefixFrom(a, bits)
}

// routes4 are the classless routes (option 121), which make a client ignore the router option (RFC 3442), or the default route. Gateways outside
// the lease's own subnet are reached on the link.
func routes4(ack *dhcpv4.DHCPv4, own netip.Prefix, metric int) []netconfig.Route {
	var out []netconfig.Route
	add := func(to netip.Prefix, via netip.Addr) {
		r := netconfig.Route{To: to, Metric: metric}
		if via.IsValid() && !via.IsUnspecified() {
			r.Via, r.OnLink = via, !own.Masked().Contains(via)
		}
		out = append(out, r)
	}
	classless := ack.ClasslessStaticRoute()
	for _, r := range classless {
		bits, _ := r.Dest.Mask.Size()
		to, ok1 := netip.AddrFromSlice(r.Dest.IP.To4())
		via, ok2 := netip.AddrFromSlice(r.Router.To4())
		if ok1 && ok2 {
			add(netip.PrefixFrom(to, bits).Masked(), via)
		}
	}
	if len(classless) > 0 {
		slices.SortStableFunc(out, func(a, b netconfig.Route) int { // routes on the link first: gateways may lie behind them
			return btoi(a.Via.IsValid()) - btoi(b.Via.IsValid())
		})
		return out
	}
	for _, r := range addrs(ack.Router())[:min(1, len(ack.Router()))] {
		add(netip.MustParsePrefix("0.0.0.0/0"), r)
	}
	return out
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// search4 joins the domain name (option 15) and the search list (119).
func search4(ack *dhcpv4.DHCPv4) []string {
	var out []string
	if list := ack.DomainSearch(); list != nil {
		out = append(out, list.Labels...)
	}
	if d := ack.DomainName(); d != "" && !slices.Contains(out, d) {
		out = append(out, d)
	}
	return out
}

func addrs(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func answer4(ack *dhcpv4.DHCPv4, prefix netip.Prefix) *Answer {
	out := &Answer{Address: prefix, Server: ack.ServerIdentifier().String(), Options: map[string]string{}}
	for code, value := range ack.Options {
		out.Options[strconv.Itoa(int(code))] = option4(dhcpv4.GenericOptionCode(code), value, ack)
	}
	return out
}

// option4 shows one option for people and tests.
func option4(code dhcpv4.GenericOptionCode, value []byte, ack *dhcpv4.DHCPv4) string {
	switch code.Code() {
	case dhcpv4.OptionSubnetMask.Code(), dhcpv4.OptionRouter.Code(), dhcpv4.OptionDomainNameServer.Code(),
		dhcpv4.OptionNTPServers.Code(), dhcpv4.OptionServerIdentifier.Code(), dhcpv4.OptionBroadcastAddress.Code():
		return ipList(value)
	case dhcpv4.OptionInterfaceMTU.Code(), dhcpv4.OptionIPAddressLeaseTime.Code(), dhcpv4.OptionRenewTimeValue.Code(), dhcpv4.OptionRebindingTimeValue.Code(), dhcpv4.OptionDHCPMessageType.Code():
		n := uint64(0)
		for _, b := range value {
			n = n<<8 | uint64(b)
		}
		return strconv.FormatUint(n, 10)
	case dhcpv4.OptionClasslessStaticRoute.Code():
		return fmt.Sprint(ack.ClasslessStaticRoute())
	case dhcpv4.OptionDNSDomainSearchList.Code():
		return fmt.Sprint(search4(&dhcpv4.DHCPv4{Options: dhcpv4.Options{code.Code(): value}}))
	}
	return string(value)
}

func ipList(value []byte) string {
	var out []byte
	for chunk := range slices.Chunk(value, 4) {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = append(out, net.IP(chunk).String()...)
	}
	return string(out)
}
