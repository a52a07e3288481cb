package watch_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/yaml"

	"patchbay/internal/macpool/assign"
	"patchbay/internal/macpool/watch"
)

func (l *lab) vm(namespace, name, nics, networks string) *virtv1.VirtualMachine {
	l.t.Helper()
	v := &virtv1.VirtualMachine{}
	text := "spec: {runStrategy: Halted, template: {spec: {domain: {memory: {guest: 64Mi}, devices: {interfaces: " + nics + "}}, networks: " + networks + "}}}"
	if err := yaml.UnmarshalStrict([]byte(text), v); err != nil {
		l.t.Fatal(err)
	}
	v.Namespace, v.Name = namespace, name
	return v
}

func (l *lab) create(namespace, name, nics string) *virtv1.VirtualMachine {
	l.t.Helper()
	v := l.vm(namespace, name, nics, networksOf(nics))
	if err := l.c.Create(l.ctx, v); err != nil {
		l.t.Fatal(err)
	}
	return v
}

// networksOf gives the NIC named pod the pod network and every other one a secondary network.
func networksOf(nics string) string {
	var all []string
	for _, name := range []string{"pod", "blue", "red"} {
		switch {
		case !strings.Contains(nics, "name: "+name):
		case name == "pod":
			all = append(all, "{name: pod, pod: {}}")
		default:
			all = append(all, fmt.Sprintf("{name: %s, multus: {networkName: %s}}", name, name))
		}
	}
	return "[" + strings.Join(all, ", ") + "]"
}

func macOf(v *virtv1.VirtualMachine, nic int) string {
	return v.Spec.Template.Spec.Domain.Devices.Interfaces[nic].MacAddress
}

const manifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web}
spec:
  runStrategy: Halted
  template:
    spec:
      domain:
        memory: {guest: 64Mi}
        devices:
          interfaces: [{name: pod, masquerade: {}}%s]
      networks: [{name: pod, pod: {}}%s]
`

func TestAddressesAreWrittenIntoMachines(t *testing.T) {
	l := newLab(t, "02:00:00:00:01:00", "02:00:00:00:01:ff")
	ns := l.namespace("writes")
	read := func() *virtv1.VirtualMachine {
		v := &virtv1.VirtualMachine{}
		if err := l.c.Get(l.ctx, client.ObjectKey{Namespace: ns, Name: "web"}, v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	short := fmt.Sprintf(manifest, "", "")
	l.kubectl(short, "apply", "-n", ns, "-f", "-")
	first := read()
	if !strings.HasPrefix(macOf(first, 0), "02:00:00:00:01:") || first.Annotations[assign.StampAnnotation] == "" {
		t.Fatalf("created as %+v", first)
	}
	l.kubectl(short, "apply", "-n", ns, "-f", "-")
	l.kubectl(short, "replace", "-n", ns, "-f", "-")
	if got := macOf(read(), 0); got != macOf(first, 0) {
		t.Errorf("the address changed from %s to %s", macOf(first, 0), got)
	}
	l.kubectl(fmt.Sprintf(manifest, ", {name: blue, bridge: {}}", ", {name: blue, multus: {networkName: blue}}"), "apply", "-n", ns, "-f", "-")
	second := read()
	if macOf(second, 0) != macOf(first, 0) || macOf(second, 1) == "" || macOf(second, 1) == macOf(second, 0) {
		t.Errorf("with another NIC: %s, %s", macOf(second, 0), macOf(second, 1))
	}
	l.eventually("two are held", func() bool { return l.pool.Held() == 2 })
	l.kubectl("", "delete", "vm", "web", "-n", ns)
	l.eventually("none is held", func() bool { return l.pool.Held() == 0 })
}

func TestRefusals(t *testing.T) {
	l := newLab(t, "02:00:00:00:02:00", "02:00:00:00:02:03")
	ns := l.namespace("refusals")
	twice := l.vm(ns, "twice", "[{name: pod, masquerade: {}, macAddress: '02:00:00:00:00:aa'}, {name: blue, bridge: {}, macAddress: '02-00-00-00-00-AA'}]",
		"[{name: pod, pod: {}}, {name: blue, multus: {networkName: blue}}]")
	const denied = `admission webhook "mutatevirtualmachines.kubemacpool.io" denied the request: Failed to create virtual machine allocation error: `
	if err := l.c.Create(l.ctx, twice); err == nil || !strings.Contains(err.Error(), denied+"duplicate MAC address 02:00:00:00:00:aa found on interfaces: pod and blue") {
		t.Errorf("one address twice: %v", err)
	}
	l.create(ns, "a", "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}, {name: red, bridge: {}}]")
	l.create(ns, "b", "[{name: pod, masquerade: {}}]")
	full := l.vm(ns, "c", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
	if err := l.c.Create(l.ctx, full); err == nil || !strings.Contains(err.Error(), denied+"Failed to allocate mac to the vm object: the range is full") {
		t.Errorf("from a full range: %v", err)
	}
	if err := l.c.Delete(l.ctx, l.vm(ns, "b", "[]", "[]")); err != nil {
		t.Fatal(err)
	}
	l.eventually("the address of a deleted machine is given again", func() bool { return l.c.Create(l.ctx, full.DeepCopy()) == nil })
}

// A request that a later rule refuses keeps its addresses for a while and not for ever.
func TestWhatIsRefusedLaterIsTakenBack(t *testing.T) {
	l := newLab(t, "02:00:00:00:03:00", "02:00:00:00:03:ff")
	ns := l.namespace("later")
	before := l.pool.Held()
	bad := l.vm(ns, "bad", "[{name: pod, masquerade: {}, ports: [{port: 65536}]}]", "[{name: pod, pod: {}}]")
	if err := l.c.Create(l.ctx, bad); err == nil || !strings.Contains(err.Error(), "virtualmachine-validator") {
		t.Fatalf("want a refusal of the validator, got %v", err)
	}
	if held := l.pool.Held(); held != before+1 {
		t.Errorf("%d addresses are held right after the refusal, want %d", held, before+1)
	}
	l.ahead.Store(int64(6 * time.Minute))
	l.eventually("it is taken back", func() bool { return l.pool.Held() == before })
}

func TestNamespacesOptOutAndIn(t *testing.T) {
	l := newLab(t, "02:00:00:00:04:00", "02:00:00:00:04:ff")
	ns := l.namespace("opting")
	l.kubectl("", "label", "namespace", ns, "mutatevirtualmachines.kubemacpool.io=ignore")
	l.eventually("a machine of an ignored namespace gets no address", func() bool {
		v := l.vm(ns, "out", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
		return l.c.Create(l.ctx, v, client.DryRunAll) == nil && macOf(v, 0) == ""
	})
	l.kubectl("", "label", "namespace", ns, "mutatevirtualmachines.kubemacpool.io-")
	l.eventually("it does once the label is gone", func() bool {
		v := l.vm(ns, "in", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
		return l.c.Create(l.ctx, v, client.DryRunAll) == nil && macOf(v, 0) != ""
	})
	pod := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "p-", Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": `[{"name":"blue"}]`}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}, ServiceAccountName: "none"},
		}
	}
	if err := l.c.Create(l.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "none"}}); err != nil {
		t.Fatal(err)
	}
	plain := pod()
	if err := l.c.Create(l.ctx, plain); err != nil || strings.Contains(plain.Annotations["k8s.v1.cni.cncf.io/networks"], "mac") {
		t.Errorf("a pod of a namespace that has not opted in: %v %v", err, plain.Annotations)
	}
	l.kubectl("", "label", "namespace", ns, "mutatepods.kubemacpool.io=allocate")
	l.eventually("a pod gets an address after opting in", func() bool {
		p := pod()
		return l.c.Create(l.ctx, p, client.DryRunAll) == nil && strings.Contains(p.Annotations["k8s.v1.cni.cncf.io/networks"], `"mac":"02:00:00:00:04:`)
	})
}

func TestRangeChanges(t *testing.T) {
	l := newLab(t, "02:00:00:00:05:00", "02:00:00:00:05:ff")
	ns := l.namespace("ranges")
	old := l.create(ns, "old", "[{name: pod, masquerade: {}}]")
	l.kubectl("", "patch", "configmap", watch.RangeConfigMap, "-n", home, "--type=merge", "-p", `{"data":{"RANGE_START":"03:00:00:00:00:00","RANGE_END":"03:ff:ff:ff:ff:ff"}}`)
	l.eventually("an event about the bad range", func() bool {
		return strings.Contains(l.kubectl("", "get", "events", "-n", home, "-o", "jsonpath={.items[*].message}", "--field-selector=reason=InvalidRange"),
			"Invalid MAC range in ConfigMap, ignoring new range values: ")
	})
	if v := l.create(ns, "still", "[{name: pod, masquerade: {}}]"); !strings.HasPrefix(macOf(v, 0), "02:00:00:00:05:") {
		t.Errorf("the old range does not hold: %s", macOf(v, 0))
	}
	l.kubectl("", "patch", "configmap", watch.RangeConfigMap, "-n", home, "--type=merge", "-p", `{"data":{"RANGE_START":"06:00:00:00:00:00","RANGE_END":"06:ff:ff:ff:ff:ff"}}`)
	l.eventually("the new range", func() bool {
		v := l.vm(ns, "new", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
		return l.c.Create(l.ctx, v, client.DryRunAll) == nil && strings.HasPrefix(macOf(v, 0), "06:")
	})
	l.kubectl("", "patch", "configmap", watch.RangeConfigMap, "-n", home, "--type=merge", "-p", `{"data":{"OFF":"true"}}`)
	l.eventually("no addresses once the pool is off", func() bool {
		v := l.vm(ns, "off", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
		return l.c.Create(l.ctx, v, client.DryRunAll) == nil && macOf(v, 0) == ""
	})
	if err := l.c.Get(l.ctx, client.ObjectKeyFromObject(old), old); err != nil || !strings.HasPrefix(macOf(old, 0), "02:00:00:00:05:") {
		t.Errorf("an old address changed: %s, %v", macOf(old, 0), err)
	}
}

func (l *lab) running(namespace, name, mac string) *virtv1.VirtualMachineInstance {
	l.t.Helper()
	i := &virtv1.VirtualMachineInstance{}
	text := "spec: {domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: pod, masquerade: {}}]}}, networks: [{name: pod, pod: {}}]}"
	if err := yaml.UnmarshalStrict([]byte(text), i); err != nil {
		l.t.Fatal(err)
	}
	i.Namespace, i.Name = namespace, name
	if err := l.c.Create(l.ctx, i); err != nil {
		l.t.Fatal(err)
	}
	i.Status.Phase = virtv1.Running
	i.Status.Interfaces = []virtv1.VirtualMachineInstanceNetworkInterface{{Name: "pod", MAC: mac}}
	if err := l.c.Update(l.ctx, i); err != nil {
		l.t.Fatal(err)
	}
	return i
}

func TestCollisionsAreReported(t *testing.T) {
	l := newLab(t, "02:00:00:00:06:00", "02:00:00:00:06:ff")
	one, two := l.namespace("collide-1"), l.namespace("collide-2")
	a, b := l.running(one, "a", "0e:00:00:00:06:01"), l.running(two, "b", "0E-00-00-00-06-01")
	const text = "MAC 0e:00:00:00:06:01: Collision between vmi/collide-1/a, vmi/collide-2/b"
	says := func(i *virtv1.VirtualMachineInstance) string {
		return l.kubectl("", "get", "vmi", i.Name, "-n", i.Namespace, "-o", "jsonpath={.status.conditions[?(@.type=='MACCollision')].message}")
	}
	for _, i := range []*virtv1.VirtualMachineInstance{a, b} {
		l.eventually("both say so", func() bool { return says(i) == text })
		l.eventually("an event on both", func() bool {
			return l.kubectl("", "get", "events", "-n", i.Namespace, "--field-selector=reason=MACCollision", "-o",
				"jsonpath={.items[*].type} {.items[*].involvedObject.name} {.items[*].reportingComponent} {.items[*].message}") ==
				"Warning "+i.Name+" kubemacpool "+text
		})
	}
	want := "# HELP kmp_mac_collisions Number of running objects that share a MAC address\n# TYPE kmp_mac_collisions gauge\nkmp_mac_collisions{mac=\"0e:00:00:00:06:01\"} 2\n"
	if err := testutil.GatherAndCompare(metrics.Registry, strings.NewReader(want), "kmp_mac_collisions"); err != nil {
		t.Error(err)
	}
	l.kubectl("", "label", "namespace", two, "mutatevirtualmachines.kubemacpool.io=ignore")
	l.eventually("an ignored namespace does not count", func() bool { return says(a) == "" && says(b) == "" })
	l.kubectl("", "label", "namespace", two, "mutatevirtualmachines.kubemacpool.io-")
	l.eventually("it counts again", func() bool { return says(a) == text })
	if err := l.c.Get(l.ctx, client.ObjectKeyFromObject(b), b); err != nil {
		t.Fatal(err)
	}
	b.Status.Phase = virtv1.Succeeded
	if err := l.c.Update(l.ctx, b); err != nil {
		t.Fatal(err)
	}
	l.eventually("it is over when one stops", func() bool { return says(a) == "" && says(b) == "" })
	l.eventually("the series is gone", func() bool {
		return testutil.GatherAndCompare(metrics.Registry, strings.NewReader(""), "kmp_mac_collisions") == nil
	})
}

// A pool that starts anew knows what is held before it gives anything away; machines that come meanwhile are admitted.
func TestRestart(t *testing.T) {
	l := newLab(t, "02:00:00:00:07:00", "02:00:00:00:07:03")
	ns := l.namespace("restart")
	l.create(ns, "a", "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}]")
	l.stop()
	if err := l.c.Delete(l.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: watch.RangeConfigMap}}); err != nil {
		t.Fatal(err)
	}
	again := newLabBeforeRange(t)
	out, problems, err := fixture.Kubectl(l.ctx, strings.NewReader(fmt.Sprintf(manifest, "", "")), "apply", "-n", ns, "-f", "-")
	if err != nil || !strings.Contains(problems, "the MAC address pool is being rebuilt") {
		t.Fatalf("a machine that comes during a rebuild: %v, %s%s", err, out, problems)
	}
	again.setRange("02:00:00:00:07:00", "02:00:00:00:07:03")
	web := &virtv1.VirtualMachine{}
	again.eventually("it gets its address afterwards", func() bool {
		return l.c.Get(l.ctx, client.ObjectKey{Namespace: ns, Name: "web"}, web) == nil && macOf(web, 0) != "" && web.Annotations[assign.WaitingAnnotation] == ""
	})
	again.create(ns, "c", "[{name: pod, masquerade: {}}]")
	full := again.vm(ns, "d", "[{name: pod, masquerade: {}}]", "[{name: pod, pod: {}}]")
	if err := l.c.Create(l.ctx, full); err == nil || !strings.Contains(err.Error(), "the range is full") {
		t.Errorf("gave an address twice: %v", err)
	}
}
