package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const machine = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: {{.strategy}}
  template:
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      domain:
        memory: {guest: 128Mi}
        devices:
          panicDevices: [{model: isa}]
          disks: [{name: root, disk: {bus: virtio}}, {name: seed, disk: {bus: virtio}}]
          interfaces: [{name: default, masquerade: {}}]
      networks: [{name: default, pod: {}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
        - {name: seed, cloudInitNoCloud: {userData: "#cloud-config\nbootcmd: [[sh, -c, '{{.does}}']]\n"}}
`

const toolbox = `
apiVersion: v1
kind: Pod
metadata: {name: {{.name}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: {{.node}}}
  containers:
    - {name: toolbox, image: "patchbay.io/guest/toolbox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "86400"]}
`

// interval is the time between two packets of a flow.
const interval = 100 * time.Millisecond

// flow is a ping from a pod of one node to a machine on the other.
type flow struct {
	t                  *testing.T
	namespace, pod, to string
}

func (f flow) sh(command string) string {
	f.t.Helper()
	out := ""
	lab.Eventually(f.t, limit, "a command runs in pod "+f.pod, func() (err error) {
		out, err = lab.InPod(f.t.Context(), f.namespace, f.pod, "sh", "-c", command)
		return err
	})
	return out
}

func (f flow) start() {
	f.sh(fmt.Sprintf("ping -i %.1f %s </dev/null >/tmp/flow 2>&1 & echo $! >/tmp/pid", interval.Seconds(), f.to))
	f.settled()
}

// settled waits until packets come back, so that the flow has been through whatever happened.
func (f flow) settled() {
	f.t.Helper()
	count := func() int { return len(f.replies()) }
	before := count()
	lab.Eventually(f.t, limit, "packets to "+f.to+" come back", func() error {
		if now := count(); now < before+5 {
			return fmt.Errorf("%d, before %d", now, before)
		}
		return nil
	})
}

var sequence = regexp.MustCompile(`seq=(\d+)`)

func (f flow) replies() []int {
	var all []int
	for _, m := range sequence.FindAllStringSubmatch(f.sh("cat /tmp/flow"), -1) {
		n, _ := strconv.Atoi(m[1])
		all = append(all, n)
	}
	return all
}

// stop ends the flow and returns the longest time without an answer.
func (f flow) stop() time.Duration {
	f.t.Helper()
	f.settled()
	f.sh("kill $(cat /tmp/pid)")
	longest, last := 0, -1
	for _, n := range f.replies() {
		if last >= 0 {
			longest = max(longest, n-last-1)
		}
		last = max(last, n)
	}
	return time.Duration(longest) * interval
}

func instance(t *testing.T, namespace, name string) (*virtv1.VirtualMachineInstance, error) {
	t.Helper()
	vmi := &virtv1.VirtualMachineInstance{}
	return vmi, lab.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, vmi)
}

func TestChaos(t *testing.T) {
	w := &world{ns: lab.Namespace(t)}
	for node, name := range map[string]string{"node-1": "left", "node-2": "right"} {
		lab.Apply(t, w.ns, toolbox, map[string]string{"name": "box-" + node, "node": node})
		w.machine(t, name, node, "Always", "true")
	}
	for _, node := range lab.Nodes {
		lab.PodReady(t, w.ns, "box-"+node)
	}
	for pod, name := range map[string]string{"box-node-1": "right", "box-node-2": "left"} {
		f := flow{t: t, namespace: w.ns, pod: pod, to: lab.Running(t, w.ns, name).Status.Interfaces[0].IP}
		f.start() // until the guest has started
		f.stop()
		w.flows = append(w.flows, f)
	}
	t.Run("processes of a machine", w.processes)
	t.Run("guests", w.guests)
	t.Run("components", w.components)
}

// world is two machines that nothing may happen to, and the flows to them.
type world struct {
	ns    string
	flows []flow
}

// undisturbed does something bad and checks that the two machines run on and that their flows stand still for no longer than
// documented.
func (w *world) undisturbed(t *testing.T, allowed time.Duration, what func()) {
	t.Helper()
	before := map[string]*virtv1.VirtualMachineInstance{}
	for _, name := range []string{"left", "right"} {
		vmi, err := instance(t, w.ns, name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = vmi
	}
	flows := append([]flow{}, w.flows...)
	for i := range flows {
		flows[i].t = t
		flows[i].start()
	}
	what()
	for _, f := range flows {
		gap := f.stop()
		t.Logf("%s to %s: longest gap %v", f.pod, f.to, gap)
		if gap > allowed {
			t.Errorf("%s to %s: nothing came back for %v, documented are %v at most", f.pod, f.to, gap, allowed)
		}
	}
	for name, was := range before {
		if now, err := instance(t, w.ns, name); err != nil || now.UID != was.UID || now.Status.Phase != virtv1.Running {
			t.Errorf("%s: %v, phase %s, want the same instance to run on", name, err, now.Status.Phase)
		}
	}
}

// lossless is what a host with many times more work than processors loses without anything being wrong: the switch is starved, and
// its queues run over. Flows that are cleared and put back only later take longer than this.
const lossless = 5 * time.Second

// machine starts a guest that does something while it starts.
func (w *world) machine(t *testing.T, name, node, strategy, does string) {
	t.Helper()
	lab.Apply(t, w.ns, machine, map[string]string{"name": name, "node": node, "strategy": strategy, "does": does})
}

// startedAnew waits until another instance of a machine runs.
func (w *world) startedAnew(t *testing.T, before *virtv1.VirtualMachineInstance) {
	t.Helper()
	lab.Eventually(t, limit, "another instance of "+before.Name+" runs", func() error {
		vmi, err := instance(t, w.ns, before.Name)
		if err != nil || vmi.UID == before.UID || vmi.Status.Phase != virtv1.Running {
			return fmt.Errorf("%v, phase %s", err, vmi.Status.Phase)
		}
		return nil
	})
	if out, err := lab.Kubectl(t.Context(), "delete", "vm", before.Name, "-n", w.ns); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// processes kills QEMU and a launcher: their machines have failed and are started anew, the two others notice nothing.
func (w *world) processes(t *testing.T) {
	w.machine(t, "engine", "node-1", "Always", "true")
	w.machine(t, "launched", "node-2", "Always", "true")
	engine, launched := lab.Running(t, w.ns, "engine"), lab.Running(t, w.ns, "launched")
	w.undisturbed(t, lossless, func() {
		qemu, _ := engineOf(t, w.ns, "engine")
		kill(t, qemu)
		_, launcher := engineOf(t, w.ns, "launched")
		kill(t, launcher)
		t.Run("QEMU", func(t *testing.T) { w.startedAnew(t, engine) })
		t.Run("launcher", func(t *testing.T) { w.startedAnew(t, launched) })
	})
}

// guests ends guests from inside: one that powers itself off has succeeded and stays off, one that panics has failed and is
// started anew.
func (w *world) guests(t *testing.T) {
	w.undisturbed(t, lossless, func() {
		w.machine(t, "quits", "node-1", "RerunOnFailure", "sleep 3; poweroff -f")
		w.machine(t, "panics", "node-2", "Always", "sleep 10; echo c > /proc/sysrq-trigger")
		was, before := lab.Running(t, w.ns, "quits"), lab.Running(t, w.ns, "panics")
		t.Run("poweroff", func(t *testing.T) {
			lab.Eventually(t, limit, "it has succeeded", func() error {
				if vmi, err := instance(t, w.ns, "quits"); err != nil || vmi.UID != was.UID || vmi.Status.Phase != virtv1.Succeeded {
					return fmt.Errorf("%v, phase %s", err, vmi.Status.Phase)
				}
				return nil
			})
		})
		t.Run("panic", func(t *testing.T) { w.startedAnew(t, before) })
	})
}

// components kills what runs the cluster, one after the other.
func (w *world) components(t *testing.T) {
	for _, c := range []struct {
		name    string
		allowed time.Duration
	}{
		{"node-1/agent", lossless},
		{"controller", lossless},
		{"ovn-northd", lossless},
		{"ovn-nb", lossless},
		{"ovn-sb", lossless},
		{"node-1/ovn-controller", lossless},
		{"node-1/ovsdb-server", lossless},
		// The switch of a node has its flows in memory only: the node's traffic stands still until it has them again.
		{"node-1/ovs-vswitchd", 30 * time.Second},
	} {
		t.Run(strings.ReplaceAll(c.name, "/", " "), func(t *testing.T) {
			w.undisturbed(t, c.allowed, func() {
				lab.Kill(t, limit, c.name)
			})
		})
	}
	t.Run("the northbound database is lost", func(t *testing.T) {
		w.undisturbed(t, lossless, func() {
			before := lab.Component(t, "ovn-nb")
			if err := os.Remove(filepath.Join(lab.Dir(), "ovn", "nb.db")); err != nil {
				t.Fatal(err)
			}
			kill(t, before.PID)
			lab.Replaced(t, limit, before)
		})
	})
}
