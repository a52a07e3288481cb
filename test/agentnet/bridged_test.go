package agentnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/podlab"
	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/podnetworks"
)

// onBridge gives the network of machineNIC another plugin's interface.
func onBridge(t *testing.T, config string) (o *others, machine, peer aPod) {
	t.Helper()
	o = newOthers(t, defs{"red/blue": config})
	machine, peer = newPod(t, o.kube), newPod(t, o.kube)
	o.kube.ask(machine, `[{"name":"blue","interface":"`+podnetworks.InterfaceName("blue")+`"}]`)
	o.kube.ask(peer, "blue")
	o.add(t, machine)
	o.add(t, peer)
	return o, machine, peer
}

// plugGuest opens the NIC and plays the guest behind it. What the guest learns by DHCP comes back as "key=value" lines.
func plugGuest(t *testing.T, w vmdriver.Wirer, nic vmdriver.NIC) (*podlab.Guest, *vmdriver.Wired) {
	t.Helper()
	wired, err := w.Open(t.Context(), nic)
	if err != nil {
		t.Fatal(err)
	}
	guest := podlab.NewGuest(t, wired.Files[0])
	guest.Do(func() error { return setMAC("eth0", wired.MAC) })
	if wired.Serve != nil {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); wired.Serve(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	return guest, wired
}

// lease asks for an address as a guest does.
func lease(t *testing.T, guest *podlab.Guest) map[string]string {
	t.Helper()
	guest.Up(t, nil, nil)
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ $1 = bound ] && env > "+dir+"/lease\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := in(guest.Path, "busybox", "udhcpc", "-f", "-q", "-n", "-t", "10", "-T", "1", "-i", "eth0", "-O", "mtu", "-s", script); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(dir + "/lease")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		got[key] = value
	}
	return got
}

func TestGuestOnABridgePlugin(t *testing.T) {
	removeLink(t, "br-guest")
	o, machine, peer := onBridge(t, `{"cniVersion":"1.0.0","name":"b","type":"bridge","bridge":"br-guest","mtu":1450,"ipam":{"type":"host-local",
		"subnet":"10.2.0.0/24","routes":[{"dst":"192.168.99.0/24"}],"dataDir":"`+t.TempDir()+`"}}`)
	record, _ := o.store.Get(machine.uid())
	uplink := record.Interfaces[1]
	w := &vmdriver.Bridge{Serve: true, Log: lab.log}
	nic := machineNIC(t, o.bench, machine, "vm")
	guest, wired := plugGuest(t, w, nic)
	if wired.MAC.String() != uplink.MAC.String() || wired.MTU != 1450 || len(wired.IPs) != 1 || wired.IPs[0] != uplink.IPs[0].Addr() {
		t.Errorf("wired %+v for %+v", wired, uplink)
	}
	got := lease(t, guest)
	if got["ip"] != uplink.IPs[0].Addr().String() || got["mtu"] != "1450" || got["serverid"] == "" || !strings.HasPrefix(got["serverid"], "169.254.75.1") {
		t.Errorf("the guest was told %v", got)
	}
	guest.Up(t, uplink.IPs, nil)
	mustPing(t, guest.Path, address(t, peer, "net1"))
	mustPing(t, peer.netns, uplink.IPs[0].Addr())
	if ip := address(t, machine, uplink.Name); ip != uplink.IPs[0].Addr() {
		t.Errorf("the stand-in has %s", ip)
	}
	if _, err := w.Refresh(t.Context(), nic); err != nil {
		t.Error(err)
	}
	mustPing(t, guest.Path, address(t, peer, "net1"))
	if _, err := w.Open(t.Context(), nic); !errors.Is(err, link.ErrBusy) {
		t.Errorf("a second start: %v", err)
	}

	t.Run("the pod has its interface back", func(t *testing.T) {
		for range 2 {
			if err := w.Leave(t.Context(), nic); err != nil {
				t.Fatal(err)
			}
		}
		if mac, _, err := link.Look(machine.netns, uplink.Name); err != nil || mac.String() != uplink.MAC.String() {
			t.Errorf("%s, %v", mac, err)
		}
		o.kube.ask(machine, "")
		if err := o.sync(t, machine); err != nil {
			t.Fatal(err)
		}
		if _, _, err := link.Look(machine.netns, uplink.Name); err == nil {
			t.Error("the interface outlives the attachment")
		}
	})
}

// Without an address from the plugin the guest is told nothing, and may use whatever it likes.
func TestGuestOnABridgeWithoutAddresses(t *testing.T) {
	removeLink(t, "br-plain")
	o, machine, peer := onBridge(t, `{"cniVersion":"1.0.0","name":"b","type":"bridge","bridge":"br-plain"}`)
	guest, wired := plugGuest(t, &vmdriver.Bridge{Serve: true, Log: lab.log}, machineNIC(t, o.bench, machine, "vm"))
	if wired.Serve != nil || len(wired.IPs) > 0 {
		t.Errorf("wired %+v", wired)
	}
	guest.Up(t, ips("10.1.0.5/24"), nil)
	if _, err := in(peer.netns, "ip", "addr", "add", "10.1.0.6/24", "dev", "net1"); err != nil {
		t.Fatal(err)
	}
	mustPing(t, guest.Path, netip.MustParseAddr("10.1.0.6"))
	o.del(t, machine)
	if left, err := o.runner.Containers(); err != nil || len(left) != 1 {
		t.Errorf("attachments of %v are left, %v", left, err)
	}
}

// A macvlan receives for its own address only, which is the guest's, whoever has chosen it.
func TestGuestOnMacvlan(t *testing.T) {
	for name, mac := range map[string]string{"with the plugin's address": "", "with an address of its own": "02:00:00:00:77:01"} {
		t.Run(name, func(t *testing.T) { guestOnMacvlan(t, mac) })
	}
}

func guestOnMacvlan(t *testing.T, mac string) {
	parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mvg-parent"}, PeerName: "mvg-switch"}
	if err := netlink.LinkAdd(parent); err != nil {
		t.Fatal(err)
	}
	removeLink(t, "mvg-parent")
	for _, device := range []string{"mvg-parent", "mvg-switch"} {
		if err := up(device); err != nil {
			t.Fatal(err)
		}
	}
	o, machine, peer := onBridge(t, `{"cniVersion":"1.0.0","name":"m","type":"macvlan","master":"mvg-parent","mode":"bridge","ipam":`+hostLocal(t, "10.2.2.0/24")+`}`)
	record, _ := o.store.Get(machine.uid())
	nic := machineNIC(t, o.bench, machine, "vm")
	if mac != "" {
		nic.MAC, _ = net.ParseMAC(mac)
		nic.Interface.MacAddress = mac
	}
	guest, wired := plugGuest(t, &vmdriver.Bridge{Serve: true, Log: lab.log}, nic)
	if mac != "" && wired.MAC.String() != mac {
		t.Errorf("the guest has %s, its NIC says %s", wired.MAC, mac)
	}
	guest.Up(t, record.Interfaces[1].IPs, nil)
	mustPing(t, guest.Path, address(t, peer, "net1"))
	mustPing(t, peer.netns, record.Interfaces[1].IPs[0].Addr())
	// An agent that was killed in the middle completes it.
	if err := netns.Do(machine.netns, func() error { return link.Remove("k6t-" + strings.TrimPrefix(record.Interfaces[1].Name, "pod")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := (&vmdriver.Bridge{Serve: true, Log: lab.log}).Refresh(t.Context(), nic); err != nil {
		t.Fatal(err)
	}
	mustPing(t, guest.Path, address(t, peer, "net1"))
}
