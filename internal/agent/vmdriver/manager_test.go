package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	"patchbay/test/apiserver"
)

// TestAgainstAPIServer runs a machine with the real watches, caches, selectors and patches, beside a controller that writes to the
// same conditions all the time.
func TestAgainstAPIServer(t *testing.T) {
	log.SetLogger(logr.Discard())
	control, err := apiserver.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(control.Stop)
	if err := crds.Apply(t.Context(), control.Config); err != nil {
		t.Fatal(err)
	}
	n := &node{
		t: t, root: t.TempDir(), wirer: &fakeWirer{}, events: &recorder{}, key: types.NamespacedName{Namespace: "default", Name: "vm-1"},
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), virtv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	if n.client, err = client.New(control.Config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	create(t, n.client, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}})
	vmi := machineOnNode()
	vmi.UID = ""
	create(t, n.client, vmi)
	pod := launcherPod(vmi)
	pod.UID = ""
	create(t, n.client, pod)
	n.pods = podRecords{pod.UID: {UID: pod.UID}}
	n.pod = newFakePod(t, (&Driver{Config: Config{KubeletRoot: n.root}}).runDir(pod.UID))

	mgr, err := ctrl.NewManager(control.Config, ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"},
		Cache: cache.Options{ByObject: withPods(CacheOptions("node-1"))},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.driver = New(Config{
		Node: "node-1", KubeletRoot: n.root, Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Pods: n.pods,
		Wirers: map[string]Wirer{BindingMasquerade: n.wirer}, Events: n.events,
	})
	if err := n.driver.AddToManager(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	running.Go(func() { disturb(ctx, n) })
	t.Cleanup(func() { cancel(); running.Wait() })

	n.waitPhase(virtv1.Running)
	n.waitCondition(virtv1.VirtualMachineInstanceIsMigratable, "")
	machine, err := n.driver.Machine("default", "vm-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := machine.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.waitCondition(virtv1.VirtualMachineInstancePaused, "PausedByUser")
	if err := machine.Unpause(t.Context()); err != nil {
		t.Fatal(err)
	}
	setLabel(t, n, "")
	n.nudge()
	eventually(t, "a look at an instance without its label", func() bool {
		machine, err := n.driver.Machine("default", "vm-1")
		return err == nil && machine.VMI().Labels[virtv1.NodeNameLabel] == ""
	})
	if n.pod.stopped {
		t.Error("an instance that lost a label lost its guest")
	}
	setLabel(t, n, "node-1")
	if err := n.client.Delete(t.Context(), n.vmi()); err != nil {
		t.Fatal(err)
	}
	n.waitPhase(virtv1.Succeeded)
	if c := n.vmi().Status.Conditions; !slices.ContainsFunc(c, func(c virtv1.VirtualMachineInstanceCondition) bool {
		return c.Type == virtv1.VirtualMachineInstanceReady
	}) {
		t.Errorf("the controller's condition was lost: %+v", c)
	}
	n.waitEvent("Normal Stopped")
	if got := slices.DeleteFunc(slices.Clone(n.events.events), func(e string) bool { return e != "Normal Started: VirtualMachineInstance started." }); len(got) != 1 {
		t.Errorf("started %d times: %q", len(got), n.events.events)
	}
}

// setLabel changes the label that the agent's cache selects by.
func setLabel(t *testing.T, n *node, node string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, virtv1.NodeNameLabel, node)
	if err := n.client.Patch(t.Context(), n.vmi(), client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if pod, ok := o.(*corev1.Pod); ok {
		pod.Status.Phase = corev1.PodRunning
		if err := c.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
}

func withPods(by map[client.Object]cache.ByObject) map[client.Object]cache.ByObject {
	by[&corev1.Pod{}] = cache.ByObject{Field: fields.OneTermEqualSelector("spec.nodeName", "node-1")}
	return by
}

// disturb is a controller that keeps changing its own condition.
func disturb(ctx context.Context, n *node) {
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for count := 0; ; count++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		vmi := &virtv1.VirtualMachineInstance{}
		if err := n.client.Get(ctx, n.key, vmi); err != nil {
			continue
		}
		before := vmi.DeepCopy()
		ready := virtv1.VirtualMachineInstanceCondition{Type: virtv1.VirtualMachineInstanceReady, Status: corev1.ConditionTrue, Message: fmt.Sprint(count), LastTransitionTime: metav1.Now()}
		i := slices.IndexFunc(vmi.Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool { return c.Type == ready.Type })
		if i < 0 {
			vmi.Status.Conditions = append(vmi.Status.Conditions, ready)
		} else {
			vmi.Status.Conditions[i] = ready
		}
		err := n.client.Patch(ctx, vmi, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if err != nil && !apierrors.IsConflict(err) && ctx.Err() == nil {
			n.t.Errorf("the controller: %v", err)
			return
		}
	}
}
