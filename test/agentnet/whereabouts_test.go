package agentnet

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/agent/cni"
	"patchbay/internal/agent/cni/shim"
	"patchbay/internal/agent/delegate"
	"patchbay/internal/agent/whereabouts"
)

// ranged is a node's agent whose pods get addresses of ranges that span the cluster, as the real program gives them to real plugins.
type ranged struct {
	*others
	api    client.Client
	warned []string
}

// rangedOn opens an agent on a directory that there may be already.
func rangedOn(t *testing.T, api client.Client, k *kube, dir, program string, d defs) *ranged {
	t.Helper()
	r := &ranged{others: othersOn(t, k, dir, d), api: api}
	plugins := filepath.Join(dir, "bin")
	if err := delegate.Link(program, plugins, whereabouts.Type); err != nil {
		t.Fatal(err)
	}
	plugin := whereabouts.New(whereabouts.Config{
		Socket: filepath.Join(dir, "addresses.sock"), Store: whereabouts.Store{Reader: api, Writer: api, Namespace: "system"},
		Owner: func(_ context.Context, pod shim.Pod) (wbv1alpha1.Owner, error) {
			return wbv1alpha1.Owner{Namespace: pod.Namespace, Name: pod.Name}, nil
		},
		Warn: func(_ context.Context, pod shim.Pod, message string) {
			r.warned = append(r.warned, pod.Name+": "+message)
		},
	})
	ctx, stop := context.WithCancel(context.Background())
	server, err := cni.Listen(plugin.Socket, plugin.Do, lab.log)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	r.runner = delegate.New(delegate.Config{PluginDirs: []string{plugins}, Dir: filepath.Join(dir, "delegates"), Prepare: plugin.Prepare})
	r.Delegates = r.runner
	return r
}

func poolAPI(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := wbv1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).Build()
}

func (r *ranged) taken(t *testing.T) int {
	t.Helper()
	var pools wbv1alpha1.IPPoolList
	if err := r.api.List(t.Context(), &pools); err != nil {
		t.Fatal(err)
	}
	var reservations wbv1alpha1.OverlappingRangeIPReservationList
	if err := r.api.List(t.Context(), &reservations); err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, pool := range pools.Items {
		taken += len(pool.Spec.Allocations)
	}
	if taken != len(reservations.Items) {
		t.Errorf("%d addresses are in pools, %d are reserved", taken, len(reservations.Items))
	}
	return taken
}

// Two agents share a range of two addresses: their pods meet on the macvlan's network, a third pod is refused and takes nothing from
// the others, and what an agent leaves that was killed is given back by the next.
func TestAddressesThatSpanTheCluster(t *testing.T) {
	parent := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wb-parent"}, PeerName: "wb-switch"}
	if err := netlink.LinkAdd(parent); err != nil {
		t.Fatal(err)
	}
	removeLink(t, "wb-parent")
	for _, device := range []string{"wb-parent", "wb-switch"} {
		if err := up(device); err != nil {
			t.Fatal(err)
		}
	}
	d := defs{"red/lan": `{"cniVersion":"0.3.1","name":"lan","type":"macvlan","master":"wb-parent","mode":"bridge","ipam":{"type":"whereabouts","range":"10.200.5.0/30"}}`}
	api, shim, dir := poolAPI(t), buildShim(t), t.TempDir()
	one, two := rangedOn(t, api, newKube(), dir, shim, d), rangedOn(t, api, newKube(), t.TempDir(), shim, d)
	a, b, c := newPod(t, one.kube), newPod(t, two.kube), newPod(t, two.kube)
	one.kube.asks[a.name], two.kube.asks[b.name], two.kube.asks[c.name] = "lan", "lan", "lan"

	result := one.add(t, a)
	two.add(t, b)
	if address(t, a, "net1") == address(t, b, "net1") {
		t.Fatalf("both pods have %s", address(t, a, "net1"))
	}
	mustPing(t, a.netns, address(t, b, "net1"))
	if err := one.check(a, result); err != nil {
		t.Error(err)
	}
	const full = "Could not allocate IP in range: ip: 10.200.5.1 / - 10.200.5.2 / range: 10.200.5.0/30"
	if _, err := two.do("ADD", c); err == nil || !strings.Contains(err.Error(), full) {
		t.Errorf("a third pod: %v", err)
	}
	if len(two.warned) != 1 || !strings.HasPrefix(two.warned[0], c.name+": "+full) {
		t.Errorf("warned of %q", two.warned)
	}
	mustPing(t, b.netns, address(t, a, "net1"))
	if n := one.taken(t); n != 2 {
		t.Errorf("%d addresses are taken", n)
	}

	again := rangedOn(t, api, one.kube, dir, shim, d)
	again.del(t, a)
	if n := one.taken(t); n != 1 {
		t.Errorf("%d addresses are taken after a pod has gone", n)
	}
	two.add(t, c)
	mustPing(t, b.netns, address(t, c, "net1"))
	two.del(t, b)
	two.del(t, c)
	if n := one.taken(t); n != 0 {
		t.Errorf("%d addresses are taken in the end", n)
	}
}
