// Package devices holds the tests of devices that pods request, on a real node: kubelet and containerd give a pod a device that was
// announced to them, and virtual machines run on what their node has.
package devices

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/agent/devices"
	"patchbay/internal/qemu"
	"patchbay/test/local"
)

var (
	node *local.Cluster // of one node
	keep = flag.Bool("keep", false, "leave the cluster running, to look at it")
)

// limit bounds every wait. A kubelet publishes what it has every few seconds.
const limit = 2 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(local.Main(m, &node, *keep, func(ctx context.Context) (*local.Cluster, error) { return local.Up(ctx, "kvm", 1) }))
}

// offer announces a harmless device to the node's kubelet, as the agent announces /dev/kvm, until the returned function is called. It
// is like /dev/kvm is on most hosts: nobody but root may open it.
func offer(t *testing.T) (device devices.Device, withdraw func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil { // null
		t.Fatal(err)
	}
	device = devices.Device{Resource: "devices.patchbay.test/null", Path: path, Count: 5, Check: func() error { return nil }}
	p := devices.New(devices.Config{Device: device, Dir: filepath.Join(node.Dir(), "nodes", node.Nodes[0], "kubelet", "device-plugins")})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	withdraw = func() { cancel(); running.Wait() }
	t.Cleanup(withdraw)
	return device, withdraw
}

// offered waits until pods may have so many of the device.
func offered(t *testing.T, resource string, want int64) {
	t.Helper()
	node.Eventually(t, limit, fmt.Sprintf("the node offers %d", want), func() error {
		n := &corev1.Node{}
		if err := node.Client.Get(t.Context(), client.ObjectKey{Name: node.Nodes[0]}, n); err != nil {
			return err
		}
		if got := n.Status.Allocatable[corev1.ResourceName(resource)]; got.Value() != want {
			return fmt.Errorf("it offers %s", got.String())
		}
		return nil
	})
}

// A pod as unprivileged as a machine's; {{.resources}} is what it requests.
const pod = `
apiVersion: v1
kind: Pod
metadata: {name: "{{.name}}"}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 107, runAsGroup: 107, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: patchbay.io/guest/toolbox:latest
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    resources: {limits: { {{.resources}} }}
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

func start(t *testing.T, namespace, name, resources string) *corev1.Pod {
	t.Helper()
	node.Apply(t, namespace, pod, map[string]string{"name": name, "resources": resources})
	return node.PodReady(t, namespace, name)
}

// opens has a pod open a device for reading and writing.
func opens(ctx context.Context, namespace, pod, path string) error {
	_, err := node.InPod(ctx, namespace, pod, "sh", "-c", "exec 3<>"+path+" && echo word >&3")
	return err
}

func TestPodGetsWhatItRequests(t *testing.T) {
	device, withdraw := offer(t)
	offered(t, device.Resource, 5)
	namespace := node.Namespace(t)
	with := start(t, namespace, "with", device.Resource+": 1")
	start(t, namespace, "without", "")
	if err := opens(t.Context(), namespace, "with", device.Path); err != nil {
		t.Errorf("the pod that requested the device cannot open it: %v", err)
	}
	if err := opens(t.Context(), namespace, "without", device.Path); err == nil {
		t.Error("a pod that requested nothing opens the device")
	}

	node.Kill(t, limit, node.Nodes[0]+"/kubelet")
	offered(t, device.Resource, 5)
	start(t, namespace, "later", device.Resource+": 4")
	for _, name := range []string{"with", "later"} {
		if err := opens(t.Context(), namespace, name, device.Path); err != nil {
			t.Errorf("after the kubelet's restart, pod %s: %v", name, err)
		}
	}
	now := node.PodReady(t, namespace, "with")
	if was, is := with.Status.ContainerStatuses[0].ContainerID, now.Status.ContainerStatuses[0].ContainerID; was != is {
		t.Errorf("container %s became %s with the kubelet's restart", was, is)
	}

	withdraw()
	offered(t, device.Resource, 0)
	if err := opens(t.Context(), namespace, "with", device.Path); err != nil {
		t.Errorf("a device that was withdrawn is taken from the pod that has it: %v", err)
	}
}

const machine = `
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: guest}
spec:
  domain:
    memory: {guest: 128Mi}
    devices:
      disks: [{name: root, disk: {bus: virtio}}]
  volumes:
  - name: root
    containerDisk: {image: "patchbay.io/guest/tiny:latest"}
`

// Whatever this host has: node, pod and instance tell the same story of it.
func TestMachineRunsOnWhatTheNodeHas(t *testing.T) {
	want := string(qemu.KVM)
	if devices.CheckKVM() != nil {
		want = string(qemu.TCG)
	}
	n := &corev1.Node{}
	if err := node.Client.Get(t.Context(), client.ObjectKey{Name: node.Nodes[0]}, n); err != nil {
		t.Fatal(err)
	}
	if got := n.Labels[qemu.AcceleratorLabel]; got != want || n.Labels[virtv1.NodeSchedulable] != "true" {
		t.Errorf("labels %v, want accelerator %s in service", n.Labels, want)
	}
	namespace := node.Namespace(t)
	node.Apply(t, namespace, machine, nil)
	vmi := node.Running(t, namespace, "guest")
	launcher := node.LauncherPod(t, vmi)
	if got := string(qemu.AcceleratorOf(launcher)); got != want {
		t.Errorf("the pod asks for %s, want %s", got, want)
	}
	emulated := false
	for _, c := range vmi.Status.Conditions {
		emulated = emulated || c.Type == virtv1.VirtualMachineInstanceSoftwareEmulation && c.Status == corev1.ConditionTrue
	}
	if emulated != (want == string(qemu.TCG)) {
		t.Errorf("with %s, the conditions are %v", want, vmi.Status.Conditions)
	}
	if err := node.Client.Delete(t.Context(), &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "guest", Namespace: namespace}}); err != nil {
		t.Fatal(err)
	}
}
