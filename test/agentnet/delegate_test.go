package agentnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/podnet"
)

// defs are the network-attachment-definitions of the test.
type defs map[string]string

func (d defs) Definition(_ context.Context, namespace, name string) (string, error) {
	config, ok := d[namespace+"/"+name]
	if !ok {
		return "", &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonNotFound, Message: "not found"}}
	}
	return config, nil
}

// others is an agent that runs the real plugins.
type others struct {
	*bench
	runner *delegate.Runner
	warned []string
}

func newOthers(t *testing.T, d defs) *others {
	t.Helper()
	return othersOn(t, newKube(), t.TempDir(), d)
}

// othersOn opens an agent on a directory that there may be already.
func othersOn(t *testing.T, k *kube, dir string, d defs) *others {
	t.Helper()
	program, err := filepath.Abs("../../bin/" + delegate.Program)
	if err != nil {
		t.Fatal(err)
	}
	plugins := filepath.Join(dir, "bin")
	if err := delegate.Install(t.Context(), program, plugins); err != nil {
		t.Fatalf("%v (make it with: make bin/%s)", err, delegate.Program)
	}
	dhcp := &delegate.DHCP{Program: program, Socket: filepath.Join(dir, "dhcp.sock"), Log: lab.log}
	store, _, err := podnet.OpenStore(filepath.Join(dir, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	o := &others{runner: delegate.New(delegate.Config{PluginDirs: []string{plugins}, Dir: filepath.Join(dir, "delegates"), Prepare: dhcp.Prepare})}
	plugin := cni.New(cni.Config{Pods: k, Ports: lab.ovs, Guard: lab.guard, Records: store, MTU: 1400, Log: lab.log, Definitions: d, Delegates: o.runner,
		Warn: func(_ context.Context, _ cni.PodRef, reason, message string) {
			o.warned = append(o.warned, reason+": "+message)
		},
	})
	o.bench = &bench{plugin, k, store}
	return o
}

// hostLocal keeps its leases in the test's directory: the default is shared by everything on the machine.
func hostLocal(t *testing.T, subnet string) string {
	t.Helper()
	return `{"type":"host-local","subnet":"` + subnet + `","dataDir":"` + t.TempDir() + `"}`
}

func address(t *testing.T, p aPod, device string) netip.Addr {
	t.Helper()
	var ip netip.Addr
	err := netns.Do(p.netns, func() error {
		d, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(d, netlink.FAMILY_V4)
		if err != nil || len(list) == 0 {
			return errors.Join(errors.New("no address"), err)
		}
		ip, _ = netip.AddrFromSlice(list[0].IP.To4())
		return nil
	})
	if err != nil {
		t.Fatalf("address of %s: %v", device, err)
	}
	return ip
}

func removeLink(t *testing.T, name string) {
	t.Cleanup(func() {
		if d, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(d)
		}
	})
}

// Two pods on a Linux bridge of the node, with the address and the MAC address that one of them asks for.
func TestBridgePlugin(t *testing.T) {
	o := newOthers(t, defs{"red/br": `{"cniVersion":"1.0.0","name":"br","plugins":[
		{"type":"bridge","bridge":"br-test","capabilities":{"mac":true,"ips":true},"ipam":` + hostLocal(t, "10.9.0.0/24") + `},
		{"type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_notify":"1"}}]}`})
	removeLink(t, "br-test")
	a, b := newPod(t, o.kube), newPod(t, o.kube)
	o.kube.asks[a.name] = `[{"name":"br","mac":"02:00:00:00:00:33","ips":["10.9.0.77"]}]`
	o.kube.asks[b.name] = "br@data0"
	result := o.add(t, a)
	if err := o.check(a, result); err != nil {
		t.Error(err)
	}
	o.add(t, b)
	if got := address(t, a, "net1"); got.String() != "10.9.0.77" {
		t.Errorf("the pod has %s, not the address that it asked for", got)
	}
	mustPing(t, a.netns, address(t, b, "data0"))
	expectStatus(t, o.bench, a, "ovn-kubernetes eth0 default", "red/br net1")
	var status []map[string]any
	if err := json.Unmarshal([]byte(o.kube.annotations[a.name]), &status); err != nil || status[1]["mac"] != "02:00:00:00:00:33" {
		t.Errorf("network-status %v, %v", status, err)
	}
	if again := o.add(t, a); string(again) != string(result) {
		t.Errorf("the second ADD answers %s, the first %s", again, result)
	}
	o.del(t, a)
	o.del(t, b)
	o.expectNothing(t)
	if left, err := o.runner.Containers(); err != nil || len(left) > 0 {
		t.Errorf("attachments of %v are left, %v", left, err)
	}
}

func TestMacvlanPlugin(t *testing.T) {
	parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mv-parent"}, PeerName: "mv-switch"}
	if err := netlink.LinkAdd(parent); err != nil {
		t.Fatal(err)
	}
	removeLink(t, "mv-parent")
	for _, device := range []string{"mv-parent", "mv-switch"} {
		if err := up(device); err != nil {
			t.Fatal(err)
		}
	}
	o := newOthers(t, defs{"red/mv": `{"cniVersion":"0.3.1","type":"macvlan","master":"mv-parent","mode":"bridge","ipam":` + hostLocal(t, "10.8.0.0/24") + `}`})
	a, b := newPod(t, o.kube), newPod(t, o.kube)
	o.kube.asks[a.name], o.kube.asks[b.name] = "mv", "mv"
	o.add(t, a)
	o.add(t, b)
	mustPing(t, a.netns, address(t, b, "net1"))
}

// A pod gets its address from a DHCP server on the network; the lease is given back with the pod.
func TestDHCPPlugin(t *testing.T) {
	o := newOthers(t, defs{
		"red/lan":   `{"cniVersion":"1.0.0","name":"lan","type":"bridge","bridge":"br-lan","ipam":{"type":"dhcp"}}`,
		"red/fixed": `{"cniVersion":"1.0.0","name":"lan","type":"bridge","bridge":"br-lan","ipam":{"type":"static","addresses":[{"address":"10.7.0.1/24"}]}}`,
	})
	removeLink(t, "br-lan")
	server, client := newPod(t, o.kube), newPod(t, o.kube)
	o.kube.asks[server.name], o.kube.asks[client.name] = "fixed", "lan"
	o.add(t, server)
	serveDHCP(t, server, "net1")
	o.add(t, client)
	if got := address(t, client, "net1"); !netip.MustParsePrefix("10.7.0.48/28").Contains(got) {
		t.Errorf("the pod has %s", got)
	}
	mustPing(t, client.netns, netip.MustParseAddr("10.7.0.1"))
	o.del(t, client)
}

// serveDHCP runs a DHCP server in the pod until the test ends.
func serveDHCP(t *testing.T, p aPod, device string) {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf("start 10.7.0.50\nend 10.7.0.60\ninterface %s\nlease_file %s/leases\npidfile %s/pid\nauto_time 1\noption subnet 255.255.255.0\n", device, dir, dir)
	if err := errors.Join(os.WriteFile(dir+"/conf", []byte(config), 0o600), os.WriteFile(dir+"/leases", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	var server *exec.Cmd
	err := netns.Do(p.netns, func() error {
		server = exec.Command("busybox", "udhcpd", "-f", dir+"/conf")
		return server.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	err = eventually(func() error { _, err := os.Stat(dir + "/pid"); return err })
	if err != nil {
		t.Fatal(err)
	}
}

// Another plugin makes a pod's first interface in place of the cluster's network: the pod is on nothing else than it asks for.
func TestDefaultNetworkOfAnotherPlugin(t *testing.T) {
	o := newOthers(t, defs{
		"patchbay-system/front":  `{"cniVersion":"1.0.0","name":"front","type":"bridge","bridge":"br-front","isDefaultGateway":true,"ipam":` + hostLocal(t, "10.4.0.0/24") + `}`,
		"red/back":               `{"cniVersion":"1.0.0","name":"back","type":"bridge","bridge":"br-back","ipam":` + hostLocal(t, "10.3.0.0/24") + `}`,
		"red/l2":                 `{"cniVersion":"1.0.0","name":"l2","type":"ovn-k8s-cni-overlay","topology":"layer2","netAttachDefName":"red/l2"}`,
		"ovn-kubernetes/cluster": `{"cniVersion":"1.0.0","name":"ovn-kubernetes","type":"ovn-k8s-cni-overlay"}`,
	})
	removeLink(t, "br-front")
	removeLink(t, "br-back")
	a, b := newPod(t, o.kube), newPod(t, o.kube)
	o.kube.defaults[a.name], o.kube.asks[a.name] = "front", "back"
	o.kube.defaults[b.name] = `[{"name":"front","namespace":"patchbay-system","ips":["10.4.0.77"]}]`
	result := o.add(t, a)
	if ip := address(t, a, "eth0"); !netip.MustParsePrefix("10.4.0.0/24").Contains(ip) || !strings.Contains(string(result), ip.String()+"/24") {
		t.Errorf("eth0 has %s, the runtime is told %s", ip, result)
	}
	expectStatus(t, o.bench, a, "patchbay-system/front eth0 default", "red/back net1")
	if ports := lab.ovs.Owned("cni/" + a.container + "/"); len(ports) > 0 {
		t.Errorf("the overlay has ports %v of the pod", ports)
	}
	if err := o.check(a, result); err != nil {
		t.Error(err)
	}
	o.add(t, b)
	mustPing(t, a.netns, address(t, b, "eth0"))
	o.del(t, a)
	o.del(t, b)
	o.expectNothing(t)

	for ask, want := range map[string]string{
		"ovn-kubernetes/cluster":                 "",
		`[{"name":"default","namespace":"any"}]`: "",
		"missing":                                "cannot find a network-attachment-definition (missing) in namespace (red)",
		"red/l2":                                 "network-attachment-definition red/l2: is a network of the overlay",
		`[{"name":"a"},{"name":"b"}]`:            "lists 2 networks; want one",
		"[":                                      "is not a list of networks in JSON",
		"a,b":                                    "does not name one network attachment definition",
	} {
		p := newPod(t, o.kube)
		o.kube.defaults[p.name] = ask
		_, err := o.do("ADD", p)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ask, err)
		}
		if err == nil {
			expectStatus(t, o.bench, p, "ovn-kubernetes eth0 default")
		}
		o.del(t, p)
	}
	o.expectNothing(t)
}

func TestNetworksThatCannotBe(t *testing.T) {
	o := newOthers(t, defs{
		"red/good":   `{"cniVersion":"1.0.0","type":"bridge","bridge":"br-undo","ipam":` + hostLocal(t, "10.6.0.0/24") + `}`,
		"red/absent": `{"cniVersion":"1.0.0","type":"no-such-plugin"}`,
		"red/empty":  ``,
		"red/typo":   `{"cniVersion":`,
	})
	removeLink(t, "br-undo")
	cases := map[string]struct{ ask, want string }{
		"no definition": {"good,missing", "cannot find a network-attachment-definition (missing) in namespace (red): not found"},
		"no program":    {"good,absent", `no program of the CNI plugin "no-such-plugin"`},
		"empty":         {"empty", "spec.config is empty"},
		"not JSON":      {"typo", "spec.config is not JSON"},
		"bad MAC":       {`[{"name":"good","mac":"xx"}]`, `"xx" is not a MAC address`},
		"taken name":    {"good@eth0", "two networks of the pod ask for the interface name eth0"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o.warned = nil
			p := newPod(t, o.kube)
			o.kube.asks[p.name] = c.ask
			if _, err := o.do("ADD", p); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if name == "no definition" && (len(o.warned) != 1 || !strings.HasPrefix(o.warned[0], "NoNetworkFound: "+c.want)) {
				t.Errorf("events: %q", o.warned)
			}
			o.expectNothing(t)
			if left, err := o.runner.Containers(); err != nil || len(left) > 0 {
				t.Errorf("attachments of %v are left, %v", left, err)
			}
			o.del(t, p)
		})
	}
}

// An agent that lost its memory of a pod still knows what it had others attach.
func TestAttachmentsOutliveTheAgent(t *testing.T) {
	dir := t.TempDir()
	leases := t.TempDir()
	d := defs{"red/br": `{"cniVersion":"1.0.0","name":"keep","type":"bridge","bridge":"br-keep","ipam":{"type":"host-local","subnet":"10.5.0.0/24","dataDir":"` + leases + `"}}`}
	removeLink(t, "br-keep")
	o := othersOn(t, newKube(), dir, d)
	p := newPod(t, o.kube)
	o.kube.asks[p.name] = "br"
	o.add(t, p)
	if err := os.RemoveAll(filepath.Join(dir, "pods")); err != nil {
		t.Fatal(err)
	}
	again := othersOn(t, o.kube, dir, d)
	again.del(t, p)
	files, err := filepath.Glob(filepath.Join(leases, "keep", "10.5.*"))
	if err != nil || len(files) > 0 {
		t.Errorf("addresses %v are still taken, %v", files, err)
	}
	again.expectNothing(t)
}
