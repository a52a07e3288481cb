package whereabouts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/agent/cni/shim"
)

// node is one node's plugin on an API server that it may share with others.
type node struct {
	*Plugin
	warned []string
}

func apiServer(t *testing.T, funcs interceptor.Funcs) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := wbv1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(funcs).Build()
}

// newNode serves pods; a pod whose name begins with vm- is that of a virtual machine: vm-NAME-N.
func newNode(c client.Client) *node {
	n := &node{}
	n.Plugin = New(Config{
		Store: Store{Reader: c, Writer: c, Namespace: "system"}, Socket: "/run/s",
		Owner: func(_ context.Context, pod shim.Pod) (wbv1alpha1.Owner, error) {
			if parts := strings.Split(pod.Name, "-"); parts[0] == "vm" {
				return wbv1alpha1.Owner{Kind: wbv1alpha1.OwnerMachine, Namespace: pod.Namespace, Name: parts[1]}, nil
			}
			return wbv1alpha1.Owner{Namespace: pod.Namespace, Name: pod.Name}, nil
		},
		Warn: func(_ context.Context, pod shim.Pod, message string) {
			n.warned = append(n.warned, pod.Name+": "+message)
		},
	})
	return n
}

func (n *node) ask(command, pod, ipam string) (string, error) {
	out, err := n.Do(context.Background(), shim.Request{
		Command: command, ContainerID: "sandbox-" + pod, IfName: "net1", Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=red;K8S_POD_NAME=" + pod,
		Config: json.RawMessage(`{"cniVersion":"1.0.0","name":"n","type":"macvlan","ipam":` + ipam + `}`),
	})
	if err != nil || command != "ADD" {
		return "", err
	}
	var result struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(out, &result); err != nil {
		return "", err
	}
	var all []string
	for _, ip := range result.IPs {
		all = append(all, ip.Address)
	}
	return strings.Join(all, " "), nil
}

func (n *node) add(t *testing.T, pod, ipam string) string {
	t.Helper()
	got, err := n.ask("ADD", pod, ipam)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (n *node) del(t *testing.T, pod, ipam string) {
	t.Helper()
	if _, err := n.ask("DEL", pod, ipam); err != nil {
		t.Fatal(err)
	}
}

// kept is what the API server holds: "pool address owner" and "reservation owner", sorted.
func kept(t *testing.T, c client.Client) []string {
	t.Helper()
	var pools wbv1alpha1.IPPoolList
	var reservations wbv1alpha1.OverlappingRangeIPReservationList
	if err := errors.Join(c.List(t.Context(), &pools), c.List(t.Context(), &reservations)); err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, p := range pools.Items {
		for _, key := range slices.Sorted(maps.Keys(p.Spec.Allocations)) {
			all = append(all, fmt.Sprintf("%s +%s %s", p.Name, key, p.Spec.Allocations[key].PodRef))
		}
	}
	for _, r := range reservations.Items {
		all = append(all, r.Name+" "+r.Spec.PodRef)
	}
	slices.Sort(all)
	return all
}

func want(t *testing.T, c client.Client, lines ...string) {
	t.Helper()
	if diff := cmp.Diff(append([]string{}, lines...), kept(t, c)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
}

const lan = `{"type":"whereabouts","range":"10.200.5.0/29","gateway":"10.200.5.1","exclude":["10.200.5.3/32"],"routes":[{"dst":"10.9.0.0/16"}]}`

func TestAddressesOfPods(t *testing.T) {
	c := apiServer(t, interceptor.Funcs{})
	n := newNode(c)
	if got := n.add(t, "a", lan); got != "10.200.5.2/29" {
		t.Errorf("a has %s, want the first that is neither the gateway nor left out", got)
	}
	if got := n.add(t, "b", lan); got != "10.200.5.4/29" {
		t.Errorf("b has %s", got)
	}
	if got := n.add(t, "a", lan); got != "10.200.5.2/29" {
		t.Errorf("a, asked again, has %s", got)
	}
	if _, err := n.ask("CHECK", "a", lan); err != nil {
		t.Error(err)
	}
	want(t, c, "10.200.5.0-29 +2 red/a", "10.200.5.0-29 +4 red/b", "10.200.5.2 red/a", "10.200.5.4 red/b")
	n.del(t, "a", lan)
	n.del(t, "a", lan)
	if _, err := n.ask("CHECK", "a", lan); err == nil {
		t.Error("CHECK says that a has its address still")
	}
	want(t, c, "10.200.5.0-29 +4 red/b", "10.200.5.4 red/b")
}

func TestResult(t *testing.T) {
	for version, result := range map[string]string{
		"1.0.0": `{"cniVersion":"1.0.0","ips":[{"address":"10.200.5.2/29","gateway":"10.200.5.1"}],"routes":[{"dst":"10.9.0.0/16"}]}`,
		"0.3.1": `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.200.5.2/29","gateway":"10.200.5.1"}],"routes":[{"dst":"10.9.0.0/16"}],"dns":{}}`,
	} {
		out, err := newNode(apiServer(t, interceptor.Funcs{})).Do(t.Context(), shim.Request{Command: "ADD", ContainerID: "c", IfName: "net1",
			Args: "K8S_POD_NAMESPACE=red;K8S_POD_NAME=a", Config: json.RawMessage(`{"cniVersion":"` + version + `","ipam":` + lan + `}`)})
		if err != nil || string(out) != result {
			t.Errorf("%s: %s, %v", version, out, err)
		}
	}
}

// A range that is full says so, once for the pod and to nobody else; a pod that needs two ranges keeps nothing of the first.
func TestFullRange(t *testing.T) {
	c := apiServer(t, interceptor.Funcs{})
	n := newNode(c)
	const small = `{"range":"10.0.0.0/30"}`
	n.add(t, "a", small)
	n.add(t, "b", small)
	_, err := n.ask("ADD", "c", `{"range":"10.7.0.0/24","ipRanges":[{"range":"10.0.0.0/30"}]}`)
	const text = "Could not allocate IP in range: ip: 10.0.0.1 / - 10.0.0.2 / range: 10.0.0.0/30 / excludeRanges: []: no address is free, 2 are taken"
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v", err)
	}
	if len(n.warned) != 1 || !strings.HasPrefix(n.warned[0], "c: "+text) {
		t.Errorf("warned of %q", n.warned)
	}
	want(t, c, "10.0.0.0-30 +1 red/a", "10.0.0.0-30 +2 red/b", "10.0.0.1 red/a", "10.0.0.2 red/b")
	n.del(t, "a", small)
	if got := n.add(t, "c", small); got != "10.0.0.1/30" {
		t.Errorf("c has %s after a gave back its address", got)
	}
}

func TestOverlappingRanges(t *testing.T) {
	c := apiServer(t, interceptor.Funcs{})
	n := newNode(c)
	n.add(t, "a", `{"range":"10.0.0.0/24"}`)
	if got := n.add(t, "b", `{"range":"10.0.0.0/16"}`); got != "10.0.0.2/16" {
		t.Errorf("b has %s, although the first address is taken from a range within its own", got)
	}
	if got := n.add(t, "c", `{"range":"10.0.0.0/16","network_name":"other"}`); got != "10.0.0.1/16" {
		t.Errorf("c, of another network, has %s", got)
	}
	if got := n.add(t, "d", `{"range":"10.0.0.0/20","enable_overlapping_ranges":false}`); got != "10.0.0.1/20" {
		t.Errorf("d, who does not ask about other ranges, has %s", got)
	}
}

// The pods of a virtual machine share its addresses, and none of them takes them along.
func TestAddressesOfMachines(t *testing.T) {
	c := apiServer(t, interceptor.Funcs{})
	source, target := newNode(c), newNode(c)
	const both = `{"range":"10.0.0.0/24","ipRanges":[{"range":"fd00:5::/64"}]}`
	first := source.add(t, "vm-db-1", both)
	if got := target.add(t, "vm-db-2", both); got != first || got != "10.0.0.1/24 fd00:5::1/64" {
		t.Errorf("the migration's target has %s, its source %s", got, first)
	}
	target.del(t, "vm-db-2", both)
	source.del(t, "vm-db-1", both)
	want(t, c, "10.0.0.0-24 +1 vm/red/db", "10.0.0.1 vm/red/db", "fd00-5--0-64 +1 vm/red/db", "fd00-5--1 vm/red/db")
	if got := source.add(t, "vm-db-3", both); got != first {
		t.Errorf("after a restart it has %s", got)
	}
}

// Many pods on several nodes at once: nobody gets what another has.
func TestNodesAgree(t *testing.T) {
	c := apiServer(t, interceptor.Funcs{})
	nodes := []*node{newNode(c), newNode(c), newNode(c)}
	var mu sync.Mutex
	given := map[string]string{}
	var group errgroup.Group
	for i := range 60 {
		group.Go(func() error {
			pod := fmt.Sprint("p", i)
			got, err := nodes[i%3].ask("ADD", pod, `{"range":"10.0.0.0/26"}`)
			mu.Lock()
			defer mu.Unlock()
			if other, taken := given[got]; taken && err == nil {
				t.Errorf("%s and %s have %s", pod, other, got)
			}
			given[got] = pod
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(given) != 60 || len(kept(t, c)) != 120 {
		t.Errorf("%d addresses were given, %d objects and entries are kept", len(given), len(kept(t, c)))
	}
}

// A node that dies between the reservation and the pool leaves a reservation: the same pod finds it again, another does not get it.
func TestDiesInBetween(t *testing.T) {
	dead := errors.New("killed")
	dies := true
	c := apiServer(t, interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.UpdateOption) error {
			if dies {
				return dead
			}
			return c.Update(ctx, o, options...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.DeleteOption) error {
			if dies {
				return dead
			}
			return c.Delete(ctx, o, options...)
		},
	})
	n := newNode(c)
	if _, err := n.ask("ADD", "a", lan); !errors.Is(err, dead) {
		t.Fatal(err)
	}
	want(t, c, "10.200.5.2 red/a")
	dies = false
	if got := n.add(t, "b", lan); got != "10.200.5.4/29" {
		t.Errorf("b has %s", got)
	}
	if got := n.add(t, "a", lan); got != "10.200.5.2/29" {
		t.Errorf("a has %s", got)
	}
}

func TestKeys(t *testing.T) {
	s, err := parse([]byte(`{"ipam":{"range":"fd00::/16"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r := s.ranges[0]
	for _, key := range []string{"-1", "x", "", strings.Repeat("9", 60)} {
		if a, ok := addressAt(r.subnet, key); ok {
			t.Errorf("key %q is address %s", key, a)
		}
	}
	last := lastOf(r.subnet)
	if a, ok := addressAt(r.subnet, keyOf(r.subnet, last)); !ok || a != last {
		t.Errorf("%s becomes %s", last, a)
	}
}
