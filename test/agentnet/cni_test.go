package agentnet

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
)

func TestAddConnectsAndDelLeavesNothing(t *testing.T) {
	b := newBench(t)
	a, other := newPod(t, b.kube), newPod(t, b.kube)
	result := b.add(t, a)
	b.add(t, other)
	mustPing(t, a.netns, other.ip, other.ip6, gateway, gateway6)
	if err := b.check(a, result); err != nil {
		t.Error(err)
	}
	var status []map[string]any
	if err := json.Unmarshal([]byte(b.kube.annotations[a.name]), &status); err != nil {
		t.Fatal(err)
	}
	if status[0]["interface"] != "eth0" || status[0]["default"] != true || status[0]["name"] != "ovn-kubernetes" {
		t.Errorf("network-status is %v", status)
	}
	for range 2 { // DEL may come any number of times
		b.del(t, a)
		b.del(t, other)
	}
	b.expectNothing(t)
	if err := b.check(a, result); !hasCode(err, shim.CodeUnknownContainer) {
		t.Errorf("CHECK after DEL: %v", err)
	}
}

func hasCode(err error, code uint) bool {
	var coded *shim.Error
	return errors.As(err, &coded) && coded.Code == code
}

// The pod's end is as it must be: no duplicate address detection, no router advertisements, no partial checksums.
func TestPodInterface(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	err := netns.Do(p.netns, func() error {
		device, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if device.Attrs().MTU != 1400 || device.Attrs().HardwareAddr.String() != p.network.MAC.String() {
			t.Errorf("MTU %d, MAC %s", device.Attrs().MTU, device.Attrs().HardwareAddr)
		}
		addresses, err := netlink.AddrList(device, netlink.FAMILY_V6)
		for _, a := range addresses {
			if a.Flags&(0x40|0x08) != 0 { // tentative, failed
				t.Errorf("address %s has flags %#x", a.IPNet, a.Flags)
			}
		}
		if on, err := link.TxChecksum("eth0"); err != nil || on {
			t.Errorf("checksum offload: %v, %v", on, err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := in(p.netns, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra", "/proc/sys/net/ipv6/conf/eth0/dad_transmits")
	if err != nil || out != "0\n0\n" {
		t.Errorf("accept_ra and dad_transmits are %q, %v", out, err)
	}
}

func TestAddAgainForTheSameSandboxAnswersTheSame(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	first := b.add(t, p)
	before, err := netlink.LinkByName(hostDevice(t, b, p))
	if err != nil {
		t.Fatal(err)
	}
	second := b.add(t, p)
	if diff := cmp.Diff(string(first), string(second)); diff != "" {
		t.Errorf("(-first +second):\n%s", diff)
	}
	after, err := netlink.LinkByName(hostDevice(t, b, p))
	if err != nil || after.Attrs().Index != before.Attrs().Index {
		t.Errorf("the device was made anew: index %d, then %d, %v", before.Attrs().Index, after.Attrs().Index, err)
	}
}

func hostDevice(t *testing.T, b *bench, p aPod) string {
	t.Helper()
	record, ok := b.store.Get(p.uid())
	if !ok {
		t.Fatalf("pod %s has no record", p.name)
	}
	return record.Interfaces[0].HostName
}

func TestANewSandboxReplacesTheOld(t *testing.T) {
	b := newBench(t)
	old, peer := newPod(t, b.kube), newPod(t, b.kube)
	b.add(t, old)
	b.add(t, peer)
	renewed := old
	renewed.container += "-again"
	var err error
	if renewed.netns, err = newNetns(); err != nil {
		t.Fatal(err)
	}
	b.add(t, renewed)
	mustPing(t, renewed.netns, peer.ip, peer.ip6)
	if names, err := link.Names(link.VethPrefix); err != nil || len(names) != 2 {
		t.Errorf("devices %v, %v; want two", names, err)
	}
	b.del(t, old) // comes late
	mustPing(t, renewed.netns, peer.ip)
	b.del(t, renewed)
	b.del(t, peer)
	b.expectNothing(t)
}

func TestCheckNamesWhatIsBroken(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	cases := []struct {
		name   string
		damage func() error
		want   string
	}{
		{"address", func() error {
			_, err := in(p.netns, "ip", "addr", "del", p.ip.String()+"/23", "dev", "eth0")
			return err
		}, "lacks address " + p.ip.String()},
		{"route", func() error { _, err := in(p.netns, "ip", "-6", "route", "del", "default"); return err }, "lacks the route to ::/0"},
		{"down", func() error { _, err := in(p.netns, "ip", "link", "set", "eth0", "down"); return err }, "is down"},
		{"port", func() error { return lab.ovs.Unplug(context.Background(), hostDevice(t, b, p)) }, "not an installed port"},
		{"device", func() error { return link.Remove(hostDevice(t, b, p)) }, "the node's end"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			result := b.add(t, p) // repairs what the case before broke
			if err := b.check(p, result); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(); err != nil {
				t.Fatal(err)
			}
			err := eventually(func() error {
				if err := b.check(p, result); err == nil || !strings.Contains(err.Error(), c.want) {
					return errors.Join(errors.New("CHECK does not say "+c.want), err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			b.del(t, p)
		})
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	b := newBench(t)
	cases := map[string]struct {
		pod  func() aPod
		want []string
	}{
		"no logical port": {func() aPod { return podWithoutPort(t, b.kube) }, []string{"connect pod red/pod-", "OVN has not installed the flows of logical port red_pod-"}},
		"no namespace":    {func() aPod { p := newPod(t, b.kube); p.netns = "/run/netns/absent"; return p }, []string{"make eth0", "open network namespace"}},
		"no addresses":    {func() aPod { p := newPod(t, newKube()); return p }, []string{"wait for its addresses"}},
		"interface taken": {func() aPod {
			p := newPod(t, b.kube)
			if _, err := in(p.netns, "ip", "link", "add", "eth0", "type", "bridge"); err != nil {
				t.Fatal(err)
			}
			return p
		}, []string{"there is one already"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := c.pod()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_, err := b.Do(ctx, p.request("ADD"))
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want an error with %q", err, want)
				}
			}
			b.expectNothing(t)
			b.del(t, p)
		})
	}
}

func TestAnnotationThatCannotBeWrittenFailsTheAdd(t *testing.T) {
	b := newBench(t)
	b.kube.annotateErr = errors.New("the API server is away")
	if _, err := b.do("ADD", newPod(t, b.kube)); err == nil || !strings.Contains(err.Error(), "API server is away") {
		t.Errorf("got %v", err)
	}
	b.expectNothing(t)
}

func TestPodDeletedMeanwhile(t *testing.T) {
	b := newBench(t)
	p := podWithoutPort(t, b.kube)
	done := make(chan error)
	go func() {
		_, err := b.do("ADD", p)
		done <- err
	}()
	if err := eventually(func() error {
		if len(lab.ovs.Owned("cni/")) == 0 {
			return errors.New("not plugged yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	close(b.kube.deleted[p.name])
	if err := <-done; err == nil || !strings.Contains(err.Error(), "was deleted") {
		t.Errorf("got %v", err)
	}
	b.expectNothing(t)
}

// Many pods at once: what a node drain makes the next node do.
func TestManyPodsAtOnce(t *testing.T) {
	const count = 20
	b := newBench(t)
	pods := make([]aPod, count)
	for i := range pods {
		pods[i] = newPod(t, b.kube)
	}
	if err := lab.nbctl("--wait=sb", "sync"); err != nil {
		t.Fatal(err)
	}
	took := make([]time.Duration, count)
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			begun := time.Now()
			b.add(t, p)
			took[i] = time.Since(begun)
		})
	}
	wg.Wait()
	slices.Sort(took)
	t.Logf("ADD of %d pods at once: median %s, slowest %s", count, took[count/2], took[count-1])
	for _, p := range pods[1:] {
		mustPing(t, pods[0].netns, p.ip)
	}
}

func TestGCKeepsWhatIsValid(t *testing.T) {
	b := newBench(t)
	valid, stale := newPod(t, b.kube), newPod(t, b.kube)
	result := b.add(t, valid)
	b.add(t, stale)
	r := shim.Request{Command: "GC", Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"ovn-kubernetes",
		"cni.dev/valid-attachments":[{"containerID":"` + valid.container + `","ifname":"eth0"}]}`)}
	if _, err := b.Do(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := b.check(valid, result); err != nil {
		t.Error(err)
	}
	if _, ok := b.store.Get(stale.uid()); ok || len(lab.ovs.Owned("cni/")) != 1 {
		t.Errorf("the stale pod is still there: ports %v", lab.ovs.Owned("cni/"))
	}
}
