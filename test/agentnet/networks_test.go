package agentnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/podlab"
	"patchbay/internal/agent/vmdriver"
	"patchbay/internal/podnetworks"
)

// newSwitch is a network of the overlay, as the network controller makes it.
func newSwitch(t *testing.T, name string) {
	t.Helper()
	if err := lab.nbctl("ls-add", name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.nbctl("--if-exists", "ls-del", name); err != nil {
			t.Error(err)
		}
	})
}

// give attaches a pod to a network: the logical port and the entry in its annotation.
func (k *kube) give(t *testing.T, p aPod, key, network string, n podnetworks.Network) podnetworks.Network {
	t.Helper()
	count := podCount.Add(1)
	n.MAC = podnetworks.MAC(netip.AddrFrom4([4]byte{10, 20, byte(count >> 8), byte(count)}))
	n.Name, n.MTU = network, 1300
	if n.Port == "" {
		n.Port = strings.NewReplacer("/", ".", "-", ".").Replace(key) + "_red_" + p.name
	}
	addresses := n.MAC.String()
	for _, ip := range n.IPs {
		addresses += " " + ip.Addr().String()
	}
	options := []string{"requested-chassis=" + nodeName}
	if !n.Tap {
		options = append(options, "iface-id-ver="+string(p.uid()))
	}
	err := lab.nbctl(append([]string{"lsp-add", network, n.Port, "--", "lsp-set-addresses", n.Port, addresses,
		"--", "lsp-set-port-security", n.Port, addresses + " fe80::/64", "--", "lsp-set-options", n.Port}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.more[p.name] == nil {
		k.more[p.name] = map[string]podnetworks.Network{}
	}
	k.more[p.name][key] = n
	return n
}

func ips(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// A pod on its namespace's own network: the default route leads through it, and eth0 stays for what is inside.
func TestPrimaryNetwork(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "tenant")
	pods := [2]aPod{newPod(t, b.kube), newPod(t, b.kube)}
	for n, p := range pods {
		b.kube.give(t, p, "red/tenant", "tenant", podnetworks.Network{Role: podnetworks.Primary, Interface: podnetworks.PrimaryInterface,
			IPs: ips(fmt.Sprintf("10.20.0.%d/16", n+5), fmt.Sprintf("fd00:20::%d/64", n+5)), Gateways: []netip.Addr{netip.MustParseAddr("10.20.0.1")}})
		locked := p.network
		locked.Gateways, locked.Role = nil, podnetworks.InfrastructureLocal
		b.kube.networks[p.name] = locked
		b.add(t, p)
	}
	mustPing(t, pods[0].netns, netip.MustParseAddr("10.20.0.6"), netip.MustParseAddr("fd00:20::6"), pods[1].ip)
	routes, err := in(pods[0].netns, "ip", "route", "show", "default")
	if err != nil || !strings.Contains(routes, "via 10.20.0.1 dev ovn-udn1") || strings.Contains(routes, "eth0") {
		t.Errorf("default routes: %q, %v", routes, err)
	}
	expectStatus(t, b, pods[0], "ovn-kubernetes eth0", "ovn-kubernetes ovn-udn1 default")
	for _, p := range pods {
		b.del(t, p)
	}
	b.expectNothing(t)
}

// expectStatus compares network-status, written as "NAME INTERFACE" and "default" where the default route is.
func expectStatus(t *testing.T, b *bench, p aPod, want ...string) {
	t.Helper()
	var list []struct {
		Name, Interface string
		Default         bool
	}
	b.kube.mu.Lock()
	defer b.kube.mu.Unlock()
	if err := json.Unmarshal([]byte(b.kube.annotations[p.name]), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		text := e.Name + " " + e.Interface
		if e.Default {
			text += " default"
		}
		got = append(got, text)
	}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("network-status is %q, want %q", got, want)
	}
}

// One network twice in one pod: each interface answers and sends for its own address only.
func TestTheSameNetworkTwice(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "blue")
	twice, once := newPod(t, b.kube), newPod(t, b.kube)
	b.kube.asks[twice.name], b.kube.asks[once.name] = "blue,blue@second", "blue"
	secondary := podnetworks.Network{Role: podnetworks.Secondary}
	for key, ip := range map[string]string{"red/blue": "192.168.7.5/24", "red/blue/1": "192.168.7.6/24"} {
		secondary.IPs = ips(ip)
		b.kube.give(t, twice, key, "blue", secondary)
	}
	secondary.IPs = ips("192.168.7.9/24")
	b.kube.give(t, once, "red/blue", "blue", secondary)
	result := b.add(t, twice)
	b.add(t, once)
	mustPing(t, once.netns, netip.MustParseAddr("192.168.7.5"), netip.MustParseAddr("192.168.7.6"))
	for _, from := range []string{"192.168.7.5", "192.168.7.6"} {
		if _, err := in(twice.netns, "ping", "-n", "-q", "-c2", "-W2", "-I", from, "192.168.7.9"); err != nil {
			t.Error(err)
		}
	}
	expectStatus(t, b, twice, "ovn-kubernetes eth0 default", "red/blue net1", "red/blue second")
	if err := b.check(twice, result); err != nil {
		t.Error(err)
	}
}

// What fails on the way takes everything before it back.
func TestAFailedNetworkTakesTheOthersBack(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "blue")
	p := newPod(t, b.kube)
	b.kube.asks[p.name] = "blue"
	b.kube.give(t, p, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary})
	if err := lab.nbctl("lsp-del", "red.blue_red_"+p.name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := b.Do(ctx, p.request("ADD")); err == nil || !strings.Contains(err.Error(), "logical port red.blue_red_") {
		t.Errorf("got %v", err)
	}
	b.expectNothing(t)
}

// machineNIC is the NIC of a machine whose pod was connected.
func machineNIC(t *testing.T, b *bench, p aPod, vm string) vmdriver.NIC {
	t.Helper()
	record, ok := b.store.Get(p.uid())
	if !ok {
		t.Fatalf("pod %s has no record", p.name)
	}
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.Namespace, vmi.Name = "red", vm
	network := virtv1.Network{Name: "blue", NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "blue"}}}
	vmi.Spec.Networks = []virtv1.Network{network}
	return vmdriver.NIC{VMI: vmi, Interface: virtv1.Interface{Name: "blue"}, Network: network, Pod: record, Queues: 1, DNS: guestnet.DNS{}}
}

// A guest's tap is plugged straight into the integration bridge.
func TestTap(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "blue")
	machine, peer := newPod(t, b.kube), newPod(t, b.kube)
	b.kube.asks[machine.name] = `[{"name":"blue","interface":"` + podnetworks.InterfaceName("blue") + `"}]`
	b.kube.asks[peer.name] = "blue"
	given := b.kube.give(t, machine, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary, Tap: true, Port: "vm/red/vm/blue",
		IPs: ips("192.168.7.5/24")})
	b.kube.give(t, peer, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary, IPs: ips("192.168.7.9/24")})
	b.add(t, machine)
	b.add(t, peer)
	expectStatus(t, b, machine, "ovn-kubernetes eth0 default", "red/blue "+podnetworks.InterfaceName("blue"))

	taps := &vmdriver.Taps{Ports: lab.ovs, Guard: lab.guard}
	nic := machineNIC(t, b, machine, "vm")
	wired, err := taps.Open(t.Context(), nic)
	if err != nil {
		t.Fatal(err)
	}
	if wired.MTU != 1300 || wired.MAC.String() != given.MAC.String() || wired.Offloads || len(wired.IPs) != 1 {
		t.Errorf("wired %+v", wired)
	}
	guest := podlab.NewGuest(t, wired.Files[0])
	guest.Do(func() error { return setMAC("eth0", wired.MAC) })
	guest.Up(t, ips("192.168.7.5/24"), nil)
	guest.Do(func() error { return link.TxChecksumOff("eth0") })
	mustPing(t, guest.Path, netip.MustParseAddr("192.168.7.9"))

	t.Run("a second start waits", func(t *testing.T) {
		if _, err := taps.Open(t.Context(), nic); !errors.Is(err, link.ErrBusy) {
			t.Errorf("got %v", err)
		}
		mustPing(t, guest.Path, netip.MustParseAddr("192.168.7.9"))
	})
	t.Run("a new agent adopts it", func(t *testing.T) {
		if _, err := taps.Refresh(t.Context(), nic); err != nil {
			t.Fatal(err)
		}
		if err := b.Recover(t.Context(), func(types.UID) bool { return true }); err != nil {
			t.Fatal(err)
		}
		mustPing(t, guest.Path, netip.MustParseAddr("192.168.7.9"))
	})
	t.Run("its port is plugged anew", func(t *testing.T) {
		for name := range lab.ovs.Owned("tap/") {
			if err := lab.ovs.Unplug(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := taps.Refresh(t.Context(), nic); err != nil {
			t.Fatal(err)
		}
		if err := eventually(func() error { return ping(guest.Path, netip.MustParseAddr("192.168.7.9")) }); err != nil {
			t.Error(err)
		}
	})
	b.del(t, machine)
	if owned := lab.ovs.Owned("tap/"); len(owned) != 0 {
		t.Errorf("ports %v are left after the pod", owned)
	}
}

// A tap whose port OVN does not know is given back: nothing of it stays.
func TestTapWithoutItsPort(t *testing.T) {
	b := newBench(t)
	newSwitch(t, "blue")
	p := newPod(t, b.kube)
	b.kube.asks[p.name] = `[{"name":"blue","interface":"` + podnetworks.InterfaceName("blue") + `"}]`
	b.kube.give(t, p, "red/blue", "blue", podnetworks.Network{Role: podnetworks.Secondary, Tap: true, Port: "vm/red/absent/blue"})
	b.add(t, p)
	if err := lab.nbctl("lsp-del", "vm/red/absent/blue"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	taps := &vmdriver.Taps{Ports: lab.ovs, Guard: lab.guard}
	if _, err := taps.Open(ctx, machineNIC(t, b, p, "absent")); err == nil || !strings.Contains(err.Error(), "vm/red/absent/blue") {
		t.Errorf("got %v", err)
	}
	names, err := link.Names(link.TapPrefix)
	if err != nil || len(names) > 0 || len(lab.ovs.Owned("tap/")) > 0 {
		t.Errorf("left over: %v, %v, %v", names, lab.ovs.Owned("tap/"), err)
	}
}
