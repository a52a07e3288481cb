package agentnet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/link"
	"patchbay/internal/agent/netns"
	"patchbay/internal/agent/ovs"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/podnetworks"
	"patchbay/internal/tenancy/attachment"
)

// kube plays the Kubernetes API.
type kube struct {
	mu          sync.Mutex
	networks    map[string]podnetworks.Network // the default one, by pod name
	more        map[string]map[string]podnetworks.Network
	asks        map[string]string // annotation k8s.v1.cni.cncf.io/networks by pod name
	defaults    map[string]string // annotation v1.multus-cni.io/default-network by pod name
	annotations map[string]string // network-status by pod name
	deleted     map[string]chan struct{}
	annotateErr error
}

func newKube() *kube {
	return &kube{networks: map[string]podnetworks.Network{}, more: map[string]map[string]podnetworks.Network{}, asks: map[string]string{}, defaults: map[string]string{}, annotations: map[string]string{}, deleted: map[string]chan struct{}{}}
}

func (k *kube) Networks(ctx context.Context, p cni.PodRef, keys ...string) (cni.Wanted, error) {
	w, known, err := k.Now(ctx, p)
	for _, key := range keys {
		if _, ok := w.Given[key]; !ok {
			known = false
		}
	}
	if err == nil && !known {
		err = fmt.Errorf("pod %s has no addresses", p)
	}
	return w, err
}

func (k *kube) Now(_ context.Context, p cni.PodRef) (cni.Wanted, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := cni.Wanted{Pod: p, Given: map[string]podnetworks.Network{}}
	n, ok := k.networks[p.Name]
	w.Given[podnetworks.Default] = n
	maps.Copy(w.Given, k.more[p.Name])
	var err error
	if w.Default, err = cni.ParseDefault(map[string]string{attachment.DefaultNetworkAnnotation: k.defaults[p.Name]}); err != nil {
		return w, ok, err
	}
	w.Selections, err = cni.ParseSelections(map[string]string{"k8s.v1.cni.cncf.io/networks": k.asks[p.Name]}, p.Namespace)
	return w, ok, err
}

func (k *kube) While(ctx context.Context, p cni.PodRef) (context.Context, context.CancelFunc) {
	alive, cancel := context.WithCancelCause(ctx)
	k.mu.Lock()
	gone := k.deleted[p.Name]
	k.mu.Unlock()
	go func() {
		select {
		case <-gone:
			cancel(fmt.Errorf("pod %s was deleted", p))
		case <-alive.Done():
		}
	}()
	return alive, func() { cancel(nil) }
}

func (k *kube) Annotate(_ context.Context, p cni.PodRef, _, value string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.annotations[p.Name] = value
	return k.annotateErr
}

// bench is one agent's CNI part with its records.
type bench struct {
	*cni.Plugin
	kube  *kube
	store *podnet.Store
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return restart(t, newKube(), t.TempDir(), lab.ovs)
}

// restart opens an agent on records that there may be already.
func restart(t *testing.T, k *kube, dir string, ports cni.Ports) *bench {
	t.Helper()
	store, broken, err := podnet.OpenStore(dir)
	if err != nil || len(broken) > 0 {
		t.Fatal(err, broken)
	}
	plugin := cni.New(cni.Config{Pods: k, Ports: ports, Guard: lab.guard, Records: store, MTU: 1400, Log: lab.log})
	return &bench{plugin, k, store}
}

// connect opens a connection of its own. It knows everything that is in the database now; what another process has just
// written may not have reached an open connection yet.
func connect(t *testing.T) *ovs.Client {
	t.Helper()
	c, err := ovs.Connect(t.Context(), "unix:"+lab.path("db.sock"), lab.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// podCount numbers pods; their addresses follow from it.
var podCount atomic.Int32

// aPod is a pod that exists in the API and in OVN.
type aPod struct {
	name, container, netns string
	ip, ip6                netip.Addr
	network                podnetworks.Network
}

func (p aPod) uid() types.UID { return types.UID("uid-" + p.name) }

// newPod makes a pod with a logical port, and removes the port after the test.
func newPod(t *testing.T, k *kube) aPod {
	t.Helper()
	p := podWithoutPort(t, k)
	addresses := fmt.Sprintf("%s %s %s", p.network.MAC, p.ip, p.ip6)
	port := "red_" + p.name
	err := lab.nbctl("lsp-add", nodeName, port, "--", "lsp-set-addresses", port, addresses,
		"--", "lsp-set-port-security", port, addresses+" fe80::/64",
		"--", "lsp-set-options", port, "requested-chassis="+nodeName, "iface-id-ver="+string(p.uid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.nbctl("--if-exists", "lsp-del", port); err != nil {
			t.Error(err)
		}
	})
	return p
}

func podWithoutPort(t *testing.T, k *kube) aPod {
	t.Helper()
	n := podCount.Add(1) + 4
	ns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	p := aPod{name: fmt.Sprintf("pod-%d", n), container: fmt.Sprintf("container-%d", n), netns: ns,
		ip: netip.AddrFrom4([4]byte{10, 128, byte(n >> 8), byte(n)}), ip6: netip.MustParseAddr(fmt.Sprintf("fd00:10:128::%x", n))}
	p.network = podnetworks.Network{
		IPs: []netip.Prefix{netip.PrefixFrom(p.ip, 23), netip.PrefixFrom(p.ip6, 64)}, MAC: podnetworks.MAC(p.ip),
		Gateways: []netip.Addr{gateway, gateway6}, MTU: 1400, Role: podnetworks.Primary,
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.networks[p.name] = p.network
	k.deleted[p.name] = make(chan struct{})
	return p
}

func (p aPod) request(command string) shim.Request {
	return shim.Request{Command: command, ContainerID: p.container, Netns: p.netns, IfName: "eth0",
		Args:   fmt.Sprintf("K8S_POD_NAMESPACE=red;K8S_POD_NAME=%s;K8S_POD_UID=%s", p.name, p.uid()),
		Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"ovn-kubernetes","type":"patchbay-cni"}`)}
}

func (b *bench) do(command string, p aPod) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return b.Do(ctx, p.request(command))
}

// add connects a pod and disconnects it after the test.
func (b *bench) add(t *testing.T, p aPod) json.RawMessage {
	t.Helper()
	result, err := b.do("ADD", p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.del(t, p) })
	return result
}

func (b *bench) del(t *testing.T, p aPod) {
	t.Helper()
	if _, err := b.do("DEL", p); err != nil {
		t.Error(err)
	}
}

// check asks CHECK with what ADD answered.
func (b *bench) check(p aPod, result json.RawMessage) error {
	r := p.request("CHECK")
	conf, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "ovn-kubernetes", "type": "patchbay-cni", "prevResult": result})
	if err != nil {
		return err
	}
	r.Config = conf
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err = b.Do(ctx, r)
	return err
}

// expectNothing asserts that no device, port or record of a pod is on the node.
func (b *bench) expectNothing(t *testing.T) {
	t.Helper()
	names, err := link.Names(link.VethPrefix)
	if err != nil {
		t.Fatal(err)
	}
	if owned := connect(t).Owned("cni/"); len(names)+len(owned)+len(b.store.List()) > 0 {
		t.Errorf("left over: devices %v, ports %v, records %v", names, owned, b.store.List())
	}
}

// in runs a program in a namespace and returns its output.
func in(path, program string, args ...string) (string, error) {
	var out []byte
	err := netns.Do(path, func() (err error) {
		out, err = exec.Command(program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s %v: %w: %s", program, args, err, out)
	}
	return string(out), nil
}

// ping sends three packets; all must be answered.
func ping(path string, to netip.Addr) error {
	_, err := in(path, "ping", "-n", "-q", "-c3", "-i0.1", "-W2", to.String())
	return err
}

func mustPing(t *testing.T, from string, to ...netip.Addr) {
	t.Helper()
	for _, ip := range to {
		if err := ping(from, ip); err != nil {
			t.Error(err)
		}
	}
}
