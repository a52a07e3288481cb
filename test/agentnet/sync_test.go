package agentnet

import (
	"net/netip"
	"strings"
	"testing"

	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/link"
	"patchbay/internal/podnetworks"
)

func (o *others) sync(t *testing.T, p aPod) error {
	t.Helper()
	return o.Sync(t.Context(), cni.PodRef{Namespace: "red", Name: p.name, UID: p.uid()})
}

func (k *kube) ask(p aPod, text string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asks[p.name] = text
}

// A running pod gets and loses networks of ours and of others, and keeps the rest.
func TestNetworksOfARunningPod(t *testing.T) {
	o := newOthers(t, defs{
		"red/br":   `{"cniVersion":"1.0.0","name":"br","type":"bridge","bridge":"br-sync","ipam":` + hostLocal(t, "10.4.0.0/24") + `}`,
		"red/blue": `{"cniVersion":"1.0.0","name":"blue","type":"ovn-k8s-cni-overlay","topology":"layer2"}`,
	})
	removeLink(t, "br-sync")
	newSwitch(t, "blue")
	p, peer := newPod(t, o.kube), newPod(t, o.kube)
	blue := podnetworks.Network{Role: podnetworks.Secondary}
	blue.IPs = ips("192.168.7.9/24")
	o.kube.give(t, peer, "red/blue", "blue", blue)
	o.kube.ask(peer, "blue,br")
	o.add(t, peer)
	o.add(t, p)
	if err := o.sync(t, p); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default")

	o.kube.ask(p, "br,blue@data0")
	if err := o.sync(t, p); err != nil { // the controller has not given blue yet
		t.Fatal(err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default", "red/br net1")
	bridged := address(t, p, "net1")
	mustPing(t, p.netns, address(t, peer, "net2"))

	blue.IPs = ips("192.168.7.5/24")
	o.kube.give(t, p, "red/blue", "blue", blue)
	for range 2 {
		if err := o.sync(t, p); err != nil {
			t.Fatal(err)
		}
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default", "red/br net1", "red/blue data0")
	mustPing(t, p.netns, netip.MustParseAddr("192.168.7.9"), peer.ip)
	if got := address(t, p, "net1"); got != bridged {
		t.Errorf("the other network's address became %s, was %s", got, bridged)
	}

	o.kube.ask(p, "blue@data0")
	if err := o.sync(t, p); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default", "red/blue data0")
	if _, _, err := link.Look(p.netns, "net1"); err == nil {
		t.Error("net1 is still there")
	}
	mustPing(t, p.netns, netip.MustParseAddr("192.168.7.9"))

	o.kube.ask(p, "")
	o.kube.mu.Lock()
	delete(o.kube.more[p.name], "red/blue")
	o.kube.mu.Unlock()
	if err := o.sync(t, p); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default")
	mustPing(t, p.netns, peer.ip)
	o.del(t, p)
	o.del(t, peer)
	o.expectNothing(t)
}

// A network that cannot be attached costs the pod none of the others, and is tried again.
func TestANetworkThatFailsLater(t *testing.T) {
	d := defs{"red/br": `{"cniVersion":"1.0.0","name":"br","type":"bridge","bridge":"br-late","ipam":` + hostLocal(t, "10.3.0.0/24") + `}`,
		"red/bad": `{"cniVersion":"1.0.0","name":"bad","type":"bridge","bridge":"br-late","ipam":{"type":"host-local"}}`}
	o := newOthers(t, d)
	removeLink(t, "br-late")
	p := newPod(t, o.kube)
	o.add(t, p)
	o.kube.ask(p, "br,bad")
	if err := o.sync(t, p); err == nil || !strings.Contains(err.Error(), "network red/bad") {
		t.Errorf("got %v", err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default", "red/br net1")
	d["red/bad"] = d["red/br"]
	if err := o.sync(t, p); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default", "red/br net1", "red/bad net2")
}
