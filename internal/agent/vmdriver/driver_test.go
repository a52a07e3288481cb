package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/agent/podnet"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
)

const podUID = types.UID("11111111-2222-4333-8444-555555555555")

type podRecords map[types.UID]podnet.Pod

func (r podRecords) Get(uid types.UID) (podnet.Pod, bool) { pod, ok := r[uid]; return pod, ok }

type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) Event(_ runtime.Object, kind, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%s %s: %s", kind, reason, message))
}

func (r *recorder) has(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.events, func(e string) bool { return strings.Contains(e, part) })
}

// node is a node with one scheduled instance, a fake pod and a driver.
type node struct {
	t      *testing.T
	root   string
	client client.Client
	pod    *fakePod
	wirer  *fakeWirer
	wirers map[string]Wirer
	pods   PodNetworks
	events *recorder
	// records is pods, where a test changes them.
	records *liveRecords
	driver  *Driver
	key     types.NamespacedName
	stop    func()
}

func newNode(t *testing.T, change func(*virtv1.VirtualMachineInstance), ofPod ...func(*corev1.Pod)) *node {
	t.Helper()
	n := prepareNode(t, change, ofPod...)
	n.pod = newFakePod(t, (&Driver{Config: Config{KubeletRoot: n.root}}).runDir(podUID))
	n.pod.onEnd = n.nudge
	n.begin()
	return n
}

// prepareNode is newNode without a pod, and without an agent.
func prepareNode(t *testing.T, change func(*virtv1.VirtualMachineInstance), ofPod ...func(*corev1.Pod)) *node {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), virtv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	vmi := machineOnNode()
	if change != nil {
		change(vmi)
	}
	pod := launcherPod(vmi)
	for _, change := range ofPod {
		change(pod)
	}
	n := &node{
		t: t, root: t.TempDir(), wirer: &fakeWirer{}, events: &recorder{}, key: types.NamespacedName{Namespace: "default", Name: "vm-1"},
		client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(vmi, pod).WithStatusSubresource(pod).Build(),
	}
	n.wirers, n.pods = map[string]Wirer{BindingMasquerade: n.wirer}, podRecords{podUID: {UID: podUID}}
	return n
}

// machineOnNode is an instance that the controller has handed to the node.
func machineOnNode() *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "vm-1", UID: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee",
		Labels: map[string]string{virtv1.NodeNameLabel: "node-1"}, Finalizers: []string{virtv1.VirtualMachineInstanceFinalizer},
	}}
	vmi.Spec.Domain.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	vmi.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}
	vmi.Status.Phase, vmi.Status.NodeName = virtv1.Scheduled, "node-1"
	return vmi
}

// launcherPod is the instance's pod.
func launcherPod(vmi *virtv1.VirtualMachineInstance) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: vmi.Namespace, Name: "virt-launcher-" + vmi.Name, UID: podUID,
			Labels:      map[string]string{virtv1.CreatedByLabel: string(vmi.UID), virtv1.AppLabel: "virt-launcher"},
			Annotations: map[string]string{virtv1.DomainAnnotation: vmi.Name},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", Containers: []corev1.Container{{Name: launcherContainer, Image: "launcher"}},
			AutomountServiceAccountToken: new(false),
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// begin starts an agent.
func (n *node) begin() {
	n.t.Helper()
	n.driver = New(Config{
		Node: "node-1", KubeletRoot: n.root, Client: n.client, Live: n.client, Pods: n.pods,
		Wirers: n.wirers, OpenVhost: openNull, Events: n.events,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	driver := n.driver
	go func() { driver.Start(ctx); close(done) }()
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
	n.t.Cleanup(n.stop)
	n.nudge()
}

// nudge is what a watch would do.
func (n *node) nudge() {
	if _, err := n.driver.Reconcile(context.Background(), reconcile.Request{NamespacedName: n.key}); err != nil {
		n.t.Error(err)
	}
}

func (n *node) vmi() *virtv1.VirtualMachineInstance {
	n.t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	if err := n.client.Get(n.t.Context(), n.key, vmi); err != nil {
		n.t.Fatal(err)
	}
	return vmi
}

func (n *node) waitPhase(phase virtv1.VirtualMachineInstancePhase) {
	n.t.Helper()
	eventually(n.t, "phase "+string(phase), func() bool { return n.vmi().Status.Phase == phase })
}

func (n *node) waitCondition(kind virtv1.VirtualMachineInstanceConditionType, reason string) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("condition %s %s", kind, reason), func() bool {
		return slices.ContainsFunc(n.vmi().Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
			return c.Type == kind && c.Reason == reason
		})
	})
}

// waitEvent waits for an event: it is told after the status is written.
func (n *node) waitEvent(part string) {
	n.t.Helper()
	eventually(n.t, "event "+part, func() bool { return n.events.has(part) })
}

func (n *node) delete() {
	n.t.Helper()
	if err := n.client.Delete(n.t.Context(), n.vmi()); err != nil {
		n.t.Fatal(err)
	}
	n.nudge()
}

func TestMachineStartsAndShutsDown(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	vmi := n.vmi()
	want := []virtv1.VirtualMachineInstanceNetworkInterface{{
		Name: "default", MAC: vmi.Status.Interfaces[0].MAC, IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, PodInterfaceName: "eth0",
		InfoSource: "domain", QueueCount: 1, LinkState: "up",
	}}
	if diff := cmp.Diff(want, vmi.Status.Interfaces); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if vmi.Status.Machine == nil || vmi.Status.Machine.Type != qemu.DefaultMachine {
		t.Errorf("machine %v", vmi.Status.Machine)
	}
	if n.pod.starts != 1 || n.pod.files != 1 {
		t.Errorf("%d starts, %d descriptors", n.pod.starts, n.pod.files)
	}
	eventually(t, "the servers", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.serving == 1 })
	n.delete()
	n.waitPhase(virtv1.Succeeded)
	for _, event := range []string{"Normal Started:", "Normal ShuttingDown: Signaled Graceful Shutdown", "Normal Stopped: The VirtualMachineInstance was shut down."} {
		n.waitEvent(event)
	}
	eventually(t, "the end of the servers", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.serving == 0 })
	if diff := cmp.Diff([]string{"system_powerdown"}, n.pod.did()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNewAgentTakesUpRunningMachine(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	n.stop()
	if n.wirer.serving != 0 {
		t.Error("the old agent's servers go on")
	}
	n.begin()
	eventually(t, "the servers", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.serving == 1 })
	if n.pod.starts != 1 || n.wirer.opened != 1 || n.wirer.freshen != 1 || len(n.pod.did()) != 0 {
		t.Errorf("the guest was touched: %d starts, %d taps, %d refreshed, commands %v", n.pod.starts, n.wirer.opened, n.wirer.freshen, n.pod.did())
	}
	n.pod.end("guest-shutdown", 0)
	n.waitPhase(virtv1.Succeeded)
}

// An agent that cannot refresh the network of a running guest tries again; the guest is not to suffer.
func TestRefreshFailureDoesNotEndGuest(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	n.stop()
	n.wirer.err = errors.New("nft is missing")
	n.begin()
	eventually(t, "some attempts", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.freshen > 1 })
	n.wirer.mu.Lock()
	n.wirer.err = nil
	n.wirer.mu.Unlock()
	eventually(t, "the servers", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.serving == 1 })
	if n.pod.stopped || n.vmi().Status.Phase != virtv1.Running {
		t.Error("the guest was ended")
	}
}

func TestQEMUCrash(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	n.pod.end("", -9)
	n.waitPhase(virtv1.Failed)
	n.waitEvent("Warning Stopped: The VirtualMachineInstance crashed. QEMU was killed by signal 9")
}

// The connection to the monitor is not the guest.
func TestLostMonitorIsConnectedAgain(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	n.pod.hangUp()
	eventually(t, "a second connection", func() bool { n.wirer.mu.Lock(); defer n.wirer.mu.Unlock(); return n.wirer.freshen == 1 })
	if n.vmi().Status.Phase != virtv1.Running || n.pod.starts != 1 {
		t.Errorf("phase %s, %d starts", n.vmi().Status.Phase, n.pod.starts)
	}
}

func TestDeafGuestIsKilled(t *testing.T) {
	n := newNode(t, func(vmi *virtv1.VirtualMachineInstance) { vmi.Spec.TerminationGracePeriodSeconds = new(int64(1)) })
	n.pod.deaf = true
	n.waitPhase(virtv1.Running)
	n.delete()
	n.waitPhase(virtv1.Failed)
	n.waitEvent("Signaled Deletion")
	if !n.pod.stopped {
		t.Error("the launcher was not told to end QEMU")
	}
}

func TestNetworkErrorIsFinal(t *testing.T) {
	n := newNode(t, func(vmi *virtv1.VirtualMachineInstance) {
		vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{{Name: "default", Binding: &virtv1.PluginBinding{Name: "mine"}}}
	})
	n.waitPhase(virtv1.Failed)
	const want = `interface "default": this node cannot wire the binding "mine"; use masquerade on the pod network or bridge on another`
	n.waitCondition(virtv1.VirtualMachineInstanceSynchronized, "SyncFailed")
	n.waitEvent("Warning SyncFailed: " + want)
}

func TestSetUpErrorIsFinalButNotYetIsNot(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running) // the same node works
	broken := &fakeWirer{err: NotYet(errors.New("the port is not bound"))}
	m := takeUp{driver: &Driver{Config: Config{Pods: podRecords{podUID: {}}, KubeletRoot: n.root, Wirers: map[string]Wirer{BindingMasquerade: broken}}}, vmi: n.vmi(), pod: podUID}
	_, err := m.start(t.Context())
	if f := describeFailure(err, 3); f.Final || f.Retry.Before(time.Now()) || f.Retry.After(time.Now().Add(time.Second)) {
		t.Errorf("not yet: %+v", f)
	}
	broken.err = errors.New("no such device")
	_, err = m.start(t.Context())
	if f := describeFailure(err, 1); !f.Final || f.Message != "set up the pod's network for the guest: no such device" {
		t.Errorf("broken: %+v", f)
	}
	_, err = m.attach(t.Context())
	if f := describeFailure(err, 1); f.Final {
		t.Errorf("beside a running guest: %+v", f)
	}
}

func TestLauncherRefusalIsFinal(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	n.stop()
	n.pod.mu.Lock()
	n.pod.state, n.pod.refusal = protocol.Waiting, "volume disk holds 2 files"
	n.pod.mu.Unlock()
	vmi := n.vmi()
	vmi.Status.Phase = virtv1.Scheduled
	if err := n.client.Update(t.Context(), vmi); err != nil {
		t.Fatal(err)
	}
	n.begin()
	n.waitPhase(virtv1.Failed)
	n.waitEvent("the launcher refused: volume disk holds 2 files")
}

func TestRequestsOfUsers(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
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
	eventually(t, "the end of the pause", func() bool {
		return !slices.ContainsFunc(n.vmi().Status.Conditions, func(c virtv1.VirtualMachineInstanceCondition) bool {
			return c.Type == virtv1.VirtualMachineInstancePaused
		})
	})
	if err := machine.SoftReboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the reboot", func() bool { return len(n.pod.did()) == 7 })
	want := []string{"stop", "cont", "set-action shutdown=pause", "system_powerdown", "system_reset", "set-action shutdown=poweroff", "cont"}
	if diff := cmp.Diff(want, n.pod.did()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n.vmi().Status.Phase != virtv1.Running {
		t.Error("a soft reboot ended the machine")
	}
	if _, err := n.driver.Machine("default", "vm-2"); err == nil || err.Error() != `virtualmachineinstance.kubevirt.io "vm-2" not found` {
		t.Errorf("another machine: %v", err)
	}
}

// A new instance of the same name is another machine.
func TestNameIsUsedAgain(t *testing.T) {
	n := newNode(t, nil)
	n.waitPhase(virtv1.Running)
	// The fake client cannot create instances; to the driver, whose cache may have slept through the deletion, this is the same.
	fresh := n.vmi()
	fresh.UID, fresh.Status = "ffffffff-bbbb-4ccc-8ddd-eeeeeeeeeeee", virtv1.VirtualMachineInstanceStatus{}
	if err := n.client.Update(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	n.nudge()
	eventually(t, "the end of the old guest", func() bool { n.pod.mu.Lock(); defer n.pod.mu.Unlock(); return n.pod.stopped })
	if phase := n.vmi().Status.Phase; phase != "" {
		t.Errorf("the new instance is %s", phase)
	}
}
