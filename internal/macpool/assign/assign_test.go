package assign

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"patchbay/internal/macpool"
)

func assigner(t *testing.T, ready bool) *Assigner {
	t.Helper()
	within, err := macpool.ParseRange("02:00:00:00:00:01", "02:00:00:00:00:04")
	if err != nil {
		t.Fatal(err)
	}
	return &Assigner{Config: Config{
		Pool:   macpool.New(macpool.Config{Range: within, Random: func(uint64) uint64 { return 0 }}),
		Ready:  func(context.Context) bool { return ready },
		Exists: func(_ context.Context, _, name string) bool { return name == "stored" },
		Now:    func() time.Time { return time.Unix(1_700_000_000, 123) },
	}}
}

func vm(t *testing.T, name, nics, networks string) *virtv1.VirtualMachine {
	t.Helper()
	v := &virtv1.VirtualMachine{}
	text := "spec: {template: {spec: {domain: {devices: {interfaces: " + nics + "}}, networks: " + networks + "}}}"
	if err := yaml.UnmarshalStrict([]byte(text), v); err != nil {
		t.Fatal(err)
	}
	v.Namespace, v.Name = "ns", name
	return v
}

func macs(v *virtv1.VirtualMachine) map[string]string {
	all := map[string]string{}
	for _, nic := range interfaces(v) {
		all[nic.Name] = nic.MacAddress
	}
	return all
}

const networks = "[{name: pod, pod: {}}, {name: blue, multus: {networkName: blue}}, {name: red, multus: {networkName: red}}]"

func TestCreate(t *testing.T) {
	const failed = "Failed to create virtual machine allocation error: "
	for _, tc := range []struct {
		what, name, nics, problem string
		want                      map[string]string
	}{
		{"masquerade and secondary NICs get one", "a", "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}, {name: red, sriov: {}}]", "",
			map[string]string{"pod": "02:00:00:00:00:01", "blue": "02:00:00:00:00:02", "red": "02:00:00:00:00:03"}},
		{"bridge and plugins on the pod network do not", "a", "[{name: pod, bridge: {}}]", "", map[string]string{"pod": ""}},
		{"neither do l2bridge NICs", "a", "[{name: pod, binding: {name: l2bridge}}]", "", map[string]string{"pod": ""}},
		{"what the user wrote stays as written", "a", "[{name: pod, masquerade: {}, macAddress: 0E-00-00-00-00-AA}]", "", map[string]string{"pod": "0E-00-00-00-00-AA"}},
		{"a stored machine is not touched", "stored", "[{name: pod, masquerade: {}}]", "", map[string]string{"pod": ""}},
		{"two NICs of one name", "a", "[{name: pod, masquerade: {}}, {name: pod, masquerade: {}}]",
			"Failed to mutate virtual machine: every interface must have a unique name", nil},
		{"one address twice", "a", "[{name: pod, masquerade: {}, macAddress: '02:00:00:00:00:aa'}, {name: blue, bridge: {}, macAddress: 02-00-00-00-00-AA}]",
			failed + "duplicate MAC address 02:00:00:00:00:aa found on interfaces: pod and blue", nil},
		{"no address", "a", "[{name: pod, masquerade: {}, macAddress: '02:00'}]",
			failed + "invalid MAC address format for interface pod: 02:00: address 02:00: invalid MAC address", nil},
		{"more than there are", "a", "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}, {name: red, bridge: {}}, {name: b, masquerade: {}}, {name: c, masquerade: {}}]",
			failed + "Failed to allocate mac to the vm object: the range is full", nil},
	} {
		t.Run(tc.what, func(t *testing.T) {
			a, v := assigner(t, true), vm(t, tc.name, tc.nics, networks)
			_, err := a.Complete(t.Context(), nil, v, false)
			switch {
			case tc.problem != "":
				if err == nil || err.Error() != tc.problem {
					t.Errorf("refused with %v, want %q", err, tc.problem)
				}
				if a.Pool.Held() != 0 {
					t.Errorf("%d addresses are held after a refusal", a.Pool.Held())
				}
			case err != nil:
				t.Error(err)
			default:
				if diff := cmp.Diff(tc.want, macs(v)); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

func TestUpdate(t *testing.T) {
	for _, tc := range []struct {
		what, nics string
		edit       func(*virtv1.VirtualMachine)
		want       map[string]string
		stamped    bool
	}{
		{"the manifest again", "[{name: pod, masquerade: {}}]", nil, map[string]string{"pod": "02:00:00:00:00:01"}, false},
		{"a label", "[{name: pod, masquerade: {}}]", func(v *virtv1.VirtualMachine) { v.Labels = map[string]string{"a": "b"} },
			map[string]string{"pod": "02:00:00:00:00:01"}, true},
		{"another NIC", "[{name: pod, masquerade: {}}, {name: blue, bridge: {}}]", nil,
			map[string]string{"pod": "02:00:00:00:00:01", "blue": "02:00:00:00:00:02"}, true},
		{"a renamed NIC", "[{name: blue, masquerade: {}}]", nil, map[string]string{"blue": "02:00:00:00:00:02"}, true},
		{"another address", "[{name: pod, masquerade: {}, macAddress: '0e:00:00:00:00:01'}]", nil, map[string]string{"pod": "0e:00:00:00:00:01"}, true},
	} {
		t.Run(tc.what, func(t *testing.T) {
			a, old := assigner(t, true), vm(t, "a", "[{name: pod, masquerade: {}}]", networks)
			if _, err := a.Complete(t.Context(), nil, old, false); err != nil {
				t.Fatal(err)
			}
			v := vm(t, "a", tc.nics, networks)
			v.Annotations = map[string]string{StampAnnotation: old.Annotations[StampAnnotation]}
			if tc.edit != nil {
				tc.edit(v)
			}
			if _, err := a.Complete(t.Context(), old, v, false); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, macs(v)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			before, _ := Stored(old)
			after, _ := Stored(v)
			if stamped := after.After(before); stamped != tc.stamped {
				t.Errorf("stamps %v and %v, want another one: %v", before, after, tc.stamped)
			}
		})
	}
}

func TestARebuildRefusesNobody(t *testing.T) {
	a, v := assigner(t, false), vm(t, "a", "[{name: pod, masquerade: {}}]", networks)
	warnings, err := a.Complete(t.Context(), nil, v, false)
	if err != nil || len(warnings) != 1 || !waits(v) || macs(v)["pod"] != "" {
		t.Fatalf("%v %v %+v", warnings, err, v.ObjectMeta)
	}
	a.Ready = func(context.Context) bool { return true }
	again := v.DeepCopy()
	delete(again.Annotations, WaitingAnnotation)
	if warnings, err := a.Complete(t.Context(), v, again, false); err != nil || len(warnings) > 0 || waits(again) || macs(again)["pod"] != "02:00:00:00:00:01" {
		t.Errorf("%v %v %v", warnings, err, macs(again))
	}
}

func TestDryRun(t *testing.T) {
	a, v := assigner(t, true), vm(t, "a", "[{name: pod, masquerade: {}}]", networks)
	if _, err := a.Complete(t.Context(), nil, v, true); err != nil || macs(v)["pod"] != "02:00:00:00:00:01" || a.Pool.Held() != 0 {
		t.Errorf("%v, %v, %d held", macs(v), err, a.Pool.Held())
	}
}

func TestPods(t *testing.T) {
	for _, tc := range []struct{ what, networks, labels, want string }{
		{"the long form gets addresses", `[{"name":"blue","ips":["10.0.0.1"]},{"name":"red","namespace":"x","mac":"0e:00:00:00:00:01"}]`, "",
			`[{"ips":["10.0.0.1"],"mac":"02:00:00:00:00:01","name":"blue"},{"mac":"0e:00:00:00:00:01","name":"red","namespace":"x"}]`},
		{"the short form has no room for them", "blue,red@eth1", "", "blue,red@eth1"},
		{"machines' pods have the machine's", `[{"name":"blue"}]`, "virt-launcher", `[{"name":"blue"}]`},
	} {
		t.Run(tc.what, func(t *testing.T) {
			a, pod := assigner(t, true), &corev1.Pod{}
			pod.Namespace, pod.Name = "ns", "a"
			pod.Annotations = map[string]string{nadv1.NetworkAttachmentAnnot: tc.networks}
			pod.Labels = map[string]string{virtv1.AppLabel: tc.labels}
			if _, err := a.CompletePod(t.Context(), pod, false); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, pod.Annotations[nadv1.NetworkAttachmentAnnot]); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPodsWithBadAddresses(t *testing.T) {
	pod := &corev1.Pod{}
	text, _ := json.Marshal([]map[string]string{{"name": "blue", "mac": "nonsense"}})
	pod.Annotations = map[string]string{nadv1.NetworkAttachmentAnnot: string(text)}
	if _, err := assigner(t, true).CompletePod(t.Context(), pod, false); err == nil {
		t.Error("accepted a pod with a malformed address")
	}
}
