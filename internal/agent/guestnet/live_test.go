package guestnet

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"patchbay/internal/agent/masquerade"
	"patchbay/internal/agent/podlab"
)

// behindPod is a guest without addresses behind a masqueraded pod. The pod has spare devices before the guest's, so that
// the guest's has another index in every pod.
func behindPod(t *testing.T, spare int) (*podlab.Guest, *podlab.Netns) {
	t.Helper()
	lab := podlab.New(t, podlab.PodV4, podlab.PodV6)
	plan, err := masquerade.NewPlan(masquerade.Request{Uplink: lab.Record(podlab.PodV4, podlab.PodV6).Interfaces[0]})
	if err != nil {
		t.Fatal(err)
	}
	applier, err := masquerade.NewApplier()
	if err != nil {
		t.Fatal(err)
	}
	lab.Pod.Do(func() error {
		for range spare {
			if err := netlink.LinkAdd(&netlink.Tuntap{Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
				return err
			}
		}
		return nil
	})
	fds, err := applier.Open(t.Context(), lab.Pod.Path, plan)
	if err != nil {
		t.Fatal(err)
	}
	return podlab.NewGuest(t, fds[0]), lab.Pod
}

// served is behindPod with an agent that answers.
func served(t *testing.T) *podlab.Guest {
	t.Helper()
	guest, pod := behindPod(t, 0)
	serve(t, pod)
	return guest
}

// serve answers until the returned function is called.
func serve(t *testing.T, pod *podlab.Netns) (stop func()) {
	t.Helper()
	server, err := Listen(pod.Path, config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

func TestUdhcpcGetsALease(t *testing.T) {
	guest := served(t)
	guest.Up(t, nil, nil)
	dir := t.TempDir()
	script, answers := filepath.Join(dir, "script"), filepath.Join(dir, "answers")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && env | grep '^[a-z0-9_]*=' > "+answers+"\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	out, err := guest.Run(t.Context(), "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", script, "-O", "search", "-O", "mtu", "-O", "ntpsrv")
	if err != nil {
		t.Fatalf("udhcpc: %s", out)
	}
	t.Logf("lease after %s", time.Since(start).Round(time.Millisecond))
	text, err := os.ReadFile(answers)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ip=10.0.2.2", "mask=24", "router=10.0.2.1", "dns=10.96.0.10", "hostname=web-01", "domain=default.svc.cluster.local",
		"search=default.svc.cluster.local svc.cluster.local cluster.local", "mtu=1400", "ntpsrv=192.0.2.1", "lease=86313600",
		"serverid=10.0.2.1", "tftp=192.0.2.9", "bootfile=pxe.0", "siaddr=192.0.2.9",
	} {
		if !strings.Contains("\n"+string(text), "\n"+want+"\n") {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// The kernel of a guest that takes router advertisements, and a DHCPv6 client beside it.
func TestGuestGetsIPv6(t *testing.T) {
	guest := served(t)
	guest.Do(func() error {
		for key, value := range map[string]string{"accept_ra": "2", "autoconf": "1", "accept_ra_mtu": "1"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/"+key, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	guest.Up(t, nil, nil)
	waitFor(t, guest.Netns, "a default route", func() bool {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, netlink.RT_FILTER_DST)
		return err == nil && len(routes) == 1 && routes[0].Gw.Equal(net.ParseIP("fe80::ff:fe00:0"))
	})
	guest.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		for _, addr := range addrs {
			if addr.Scope == unix.RT_SCOPE_UNIVERSE {
				t.Errorf("the guest made itself the address %s, which is not translated", addr)
			}
		}
		return err
	})
	if got := ask6(t, guest); got != "fd10:0:2::2" {
		t.Errorf("DHCPv6 gave %s", got)
	}
}

// ask6 runs a DHCPv6 client in the guest.
func ask6(t *testing.T, guest *podlab.Guest) string {
	t.Helper()
	waitFor(t, guest.Netns, "a link-local address", func() bool {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
		})
	})
	var (
		conn  *net.UDPConn
		index int
	)
	guest.Do(func() error {
		device, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		index = device.Index
		conn, err = server6.NewIPv6UDPConn("eth0", &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultClientPort})
		return err
	})
	servers := &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers, Port: dhcpv6.DefaultServerPort, Zone: strconv.Itoa(index)}
	client, err := nclient6.NewWithConn(conn, guest.MAC, nclient6.WithBroadcastAddr(servers), nclient6.WithTimeout(time.Second), nclient6.WithRetry(5))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	advertise, err := client.Solicit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reply, err := client.Request(t.Context(), advertise)
	if err != nil {
		t.Fatal(err)
	}
	return reply.Options.OneIANA().Options.OneAddress().IPv6Addr.String()
}

func waitFor(t *testing.T, n *podlab.Netns, what string, ready func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var found bool
		n.Do(func() error { found = ready(); return nil })
		if found {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not come", what)
		case <-tick.C:
		}
	}
}

// A new agent opens the same sockets again while the guest runs on. Devices of the same name have other indexes in other pods.
func TestServersRestartInSeveralPods(t *testing.T) {
	for spare := range 2 {
		guest, pod := behindPod(t, spare)
		serve(t, pod)()
		serve(t, pod)
		guest.Up(t, nil, nil)
		if got := ask6(t, guest); got != "fd10:0:2::2" {
			t.Errorf("DHCPv6 gave %s", got)
		}
	}
}
