package reclaim

import (
	"io"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	wbv1alpha1 "patchbay/api/whereabouts/v1alpha1"
	"patchbay/internal/podnetworks"
)

const system = "system"

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func onNetwork(name string) []virtv1.Network {
	return []virtv1.Network{{Name: name, NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "lan"}}}}
}

// world has a pod, machines of all sorts and a node.
func world(t *testing.T, more ...client.Object) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, virtv1.AddToScheme, wbv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	stopped := &virtv1.VirtualMachine{ObjectMeta: meta("red", "stopped")}
	stopped.Spec.Template = &virtv1.VirtualMachineInstanceTemplateSpec{Spec: virtv1.VirtualMachineInstanceSpec{Networks: onNetwork("lan")}}
	bare := &virtv1.VirtualMachineInstance{ObjectMeta: meta("red", "bare"), Spec: virtv1.VirtualMachineInstanceSpec{Networks: onNetwork("lan")}}
	objects := append(more, &corev1.Pod{ObjectMeta: meta("red", "web")}, stopped, bare, &corev1.Node{ObjectMeta: meta("", "node-1")})
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()
}

// owners are as pools write them, with whether their addresses stay.
var owners = []struct {
	podRef, iface string
	stays         bool
}{
	{"red/web", "net1", true},
	{"red/gone", "net1", false},
	{"blue/web", "net1", false},
	{"vm/red/stopped", podnetworks.InterfaceName("lan"), true},
	{"vm/red/stopped", podnetworks.InterfaceName("unplugged"), false},
	{"vm/red/bare", podnetworks.InterfaceName("lan"), true},
	{"vm/red/gone", podnetworks.InterfaceName("lan"), false},
	{"node//node-1", "migration0", true},
	{"node//node-9", "migration0", false},
	{"somebody else's", "net1", true},
}

func reserved() (objects []client.Object, want []string) {
	pool := &wbv1alpha1.IPPool{ObjectMeta: meta(system, "10.0.0.0-24"), Spec: wbv1alpha1.IPPoolSpec{Range: "10.0.0.0/24", Allocations: map[string]wbv1alpha1.IPAllocation{}}}
	objects = append(objects, pool)
	for i, o := range owners {
		key := string(rune('a' + i))
		pool.Spec.Allocations[key] = wbv1alpha1.IPAllocation{ContainerID: "c", PodRef: o.podRef, IfName: o.iface}
		objects = append(objects, &wbv1alpha1.OverlappingRangeIPReservation{
			ObjectMeta: meta(system, key), Spec: wbv1alpha1.OverlappingRangeIPReservationSpec{PodRef: o.podRef, IfName: o.iface},
		})
		if o.stays {
			want = append(want, key)
		}
	}
	return objects, want
}

func kept(t *testing.T, c client.Client) (pool, reservations []string) {
	t.Helper()
	var one wbv1alpha1.IPPool
	var list wbv1alpha1.OverlappingRangeIPReservationList
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "10.0.0.0-24"}, &one); err != nil {
		t.Fatal(err)
	}
	if err := c.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Items {
		reservations = append(reservations, r.Name)
	}
	return slices.Sorted(maps.Keys(one.Spec.Allocations)), reservations
}

func TestTakesBackWhatNobodyOwns(t *testing.T) {
	objects, want := reserved()
	c := world(t, objects...)
	r := New(Config{Client: c, Direct: c, Namespace: system, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	for range 2 {
		if result, err := r.Reconcile(t.Context(), all); err != nil || result.RequeueAfter != Period {
			t.Fatal(result, err)
		}
		pool, reservations := kept(t, c)
		if diff := cmp.Diff(want, pool) + cmp.Diff(want, reservations); diff != "" {
			t.Errorf("kept (-want +got):\n%s", diff)
		}
	}
}

// An owner that is gone keeps its addresses for a while, and one that comes back keeps them for good.
func TestGrace(t *testing.T) {
	objects, _ := reserved()
	c := world(t, objects...)
	r := New(Config{Client: c, Direct: c, Namespace: system, Grace: time.Hour, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	result, err := r.Reconcile(t.Context(), all)
	if err != nil || result.RequeueAfter > Period {
		t.Fatal(result, err)
	}
	if pool, reservations := kept(t, c); len(pool) != len(owners) || len(reservations) != len(owners) {
		t.Errorf("%d and %d addresses are kept at once", len(pool), len(reservations))
	}
	for key := range r.absent {
		r.absent[key] = time.Now().Add(-2 * time.Hour)
	}
	if err := c.Create(t.Context(), &corev1.Pod{ObjectMeta: meta("red", "gone")}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reconcile(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if pool, _ := kept(t, c); !slices.Contains(pool, "b") || slices.Contains(pool, "c") {
		t.Errorf("kept are %v", pool)
	}
	if len(r.absent) > 0 {
		t.Errorf("still counted are %v", r.absent)
	}
}

// What a node has changed since the pool was read is not lost.
func TestConflict(t *testing.T) {
	objects, _ := reserved()
	c := world(t, objects...)
	stale := &wbv1alpha1.IPPool{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "10.0.0.0-24"}, stale); err != nil {
		t.Fatal(err)
	}
	fresh := stale.DeepCopy()
	fresh.Spec.Allocations["new"] = wbv1alpha1.IPAllocation{PodRef: "red/web", IfName: "net2"}
	if err := c.Update(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	r := New(Config{Client: c, Direct: c, Namespace: system, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := (&look{Reclaimer: r, context: t.Context(), known: map[holder]verdict{}}).pool(stale); err != nil {
		t.Fatal(err)
	}
	if pool, _ := kept(t, c); !slices.Contains(pool, "new") {
		t.Errorf("kept are %v", pool)
	}
}
