package admission

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func indent(text string) string {
	return "  " + strings.ReplaceAll(text, "\n", "\n  ")
}

func replacePhase(text, phase string) string { return fmt.Sprintf(text, phase) }

// counted makes identifiers that tests can name.
func counted() NewID {
	n := 0
	return func() string { n++; return fmt.Sprintf("id-%d", n) }
}

func defaulter() Defaulter { return Defaulter{Policy: DefaultPolicy(), NewID: counted()} }

// checkYAML compares what an object became, without the empty fields.
func checkYAML(t *testing.T, want string, got any) {
	t.Helper()
	text, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var wantTree, gotTree map[string]any
	if err := yaml.Unmarshal([]byte(want), &wantTree); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &gotTree); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantTree, prune(gotTree)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// prune drops the empty maps that Go types always write.
func prune(tree map[string]any) map[string]any {
	for key, value := range tree {
		if sub, ok := value.(map[string]any); ok {
			if prune(sub); len(sub) == 0 && key != "pod" && key != "masquerade" && key != "bridge" && key != "disk" {
				delete(tree, key)
			}
		}
	}
	return tree
}

func TestDefaultVM(t *testing.T) {
	vm := parse[virtv1.VirtualMachine](t, "spec: {runStrategy: Always, template: {spec: {domain: {devices: {}}}}}")
	defaulter().DefaultVM("shop", vm)
	checkYAML(t, `
spec:
  runStrategy: Always
  template:
    metadata: {annotations: {kubevirt.io/pci-topology-version: v3}}
    spec:
      architecture: amd64
      domain:
        firmware: {uuid: id-1, serial: id-2}
        machine: {type: pc-q35-7.2}`, vm)
}

func TestDefaultVMKeepsChoices(t *testing.T) {
	const chosen = `
spec:
  runStrategy: Always
  template:
    metadata: {annotations: {kubevirt.io/pci-topology-version: v2}}
    spec:
      architecture: arm64
      domain:
        firmware: {uuid: u, serial: s}
        machine: {type: pc-i440fx-7.2}`
	vm := parse[virtv1.VirtualMachine](t, chosen)
	defaulter().DefaultVM("shop", vm)
	checkYAML(t, chosen, vm)

	delete(vm.Spec.Template.ObjectMeta.Annotations, virtv1.PciTopologyVersionAnnotation)
	if defaulter().DefaultVM("shop", vm); len(vm.Spec.Template.ObjectMeta.Annotations) > 0 {
		t.Errorf("a machine without PCIe got the annotations %v", vm.Spec.Template.ObjectMeta.Annotations)
	}
}

func TestKeepIdentity(t *testing.T) {
	const manifest = "spec: {runStrategy: Always, template: {spec: {domain: {devices: {}}}}}"
	old := parse[virtv1.VirtualMachine](t, manifest)
	defaulter().DefaultVM("shop", old)
	replaced := parse[virtv1.VirtualMachine](t, manifest)
	KeepIdentity(old, replaced)
	if diff := cmp.Diff(old, replaced); diff != "" {
		t.Errorf("writing the manifest again changed the machine (-before +after):\n%s", diff)
	}
}

func TestDefaultVMI(t *testing.T) {
	vmi := parse[virtv1.VirtualMachineInstance](t, `
spec:
  readinessProbe: {tcpSocket: {port: 80}}
  domain:
    memory: {guest: 1Gi}
    resources: {requests: {cpu: 1500m}}
    devices: {disks: [{name: root}]}
  volumes: [{name: root, containerDisk: {image: x}}, {name: seed, cloudInitNoCloud: {userData: x}}]
status: {phase: Running, nodeName: node-9}`)
	if err := defaulter().DefaultVMI(vmi, alice); err != nil {
		t.Fatal(err)
	}
	checkYAML(t, `
metadata: {finalizers: [kubevirt.io/foregroundDeleteVirtualMachine]}
spec:
  architecture: amd64
  readinessProbe: {tcpSocket: {port: 80}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3}
  domain:
    cpu: {sockets: 2, cores: 1, threads: 1, maxSockets: 8}
    memory: {guest: 1Gi, maxGuest: 4Gi}
    resources: {requests: {cpu: 1500m}}
    firmware: {uuid: id-1, serial: id-2}
    machine: {type: pc-q35-7.2}
    devices:
      disks: [{name: root, disk: {}}, {name: seed, disk: {}}]
      interfaces: [{name: default, masquerade: {}}]
  networks: [{name: default, pod: {}}]
  volumes: [{name: root, containerDisk: {image: x}}, {name: seed, cloudInitNoCloud: {userData: x}}]
status: {phase: Pending, runtimeUser: 107}`, vmi)
}

func TestDefaultVMITwiceChangesNothing(t *testing.T) {
	vmi := parse[virtv1.VirtualMachineInstance](t, "spec: {domain: {memory: {guest: 1Gi}, devices: {}}, volumes: [{name: v, emptyDisk: {capacity: 1Gi}}]}")
	d := defaulter()
	if err := d.DefaultVMI(vmi, controller); err != nil {
		t.Fatal(err)
	}
	again := vmi.DeepCopy()
	if err := d.DefaultVMI(again, controller); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(vmi, again); diff != "" {
		t.Errorf("-first +second:\n%s", diff)
	}
}

func TestDefaultVMIKeepsTheControllersStatus(t *testing.T) {
	vmi := parse[virtv1.VirtualMachineInstance](t, "spec: {domain: {devices: {}}}\nstatus: {virtualMachineRevisionName: r}")
	if err := defaulter().DefaultVMI(vmi, controller); err != nil {
		t.Fatal(err)
	}
	if got := vmi.Status; got.VirtualMachineRevisionName != "r" || got.Phase != virtv1.Pending {
		t.Errorf("status %+v, want the revision kept and the phase Pending", got)
	}
}

func TestDefaultNetwork(t *testing.T) {
	masquerade, bridge := "masquerade", "bridge"
	for _, tc := range []struct {
		name, spec, binding, want, wantErr string
		noPod                              bool
	}{
		{name: "none", spec: "domain: {devices: {}}", binding: masquerade, want: "masquerade"},
		{name: "bridge", spec: "domain: {devices: {}}", binding: bridge, want: "bridge"},
		{name: "empty means bridge", spec: "domain: {devices: {}}", want: "bridge"},
		{name: "refused by the user", spec: "domain: {devices: {autoattachPodInterface: false}}", binding: masquerade},
		{name: "asked for by the user", spec: "domain: {devices: {autoattachPodInterface: true}}", binding: masquerade, want: "masquerade"},
		{name: "other network", spec: "domain: {devices: {}}\nnetworks: [{name: a, multus: {networkName: x}}]", binding: masquerade},
		{name: "bridge is not permitted", spec: "domain: {devices: {}}", binding: bridge, noPod: true, wantErr: "bridge interface is not enabled in kubevirt-config"},
		{name: "slirp", spec: "domain: {devices: {}}", binding: "slirp", wantErr: "slirp interface is deprecated as of v1.3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := parseSpec(t, tc.spec)
			err := Defaulter{Policy: Policy{NetworkInterface: tc.binding, BridgeOnPod: !tc.noPod}}.DefaultNetwork("any", spec)
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Fatalf("error %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := bindingOf(spec); got != tc.want {
				t.Errorf("binding %q, want %q", got, tc.want)
			}
		})
	}
}

func bindingOf(spec *virtv1.VirtualMachineInstanceSpec) string {
	switch nics := spec.Domain.Devices.Interfaces; {
	case len(nics) == 0:
		return ""
	case nics[0].Masquerade != nil && spec.Networks[0].Pod != nil:
		return "masquerade"
	default:
		return "bridge"
	}
}

func TestDefaultCPU(t *testing.T) {
	for _, tc := range []struct {
		spec string
		want virtv1.CPU
	}{
		{"domain: {devices: {}}", virtv1.CPU{Sockets: 1, Cores: 1, Threads: 1, MaxSockets: 4}},
		{"domain: {devices: {}, cpu: {cores: 2}}", virtv1.CPU{Sockets: 1, Cores: 2, Threads: 1, MaxSockets: 4}},
		{"domain: {devices: {}, cpu: {cores: 64, sockets: 4}}", virtv1.CPU{Sockets: 4, Cores: 64, Threads: 1, MaxSockets: 8}},
		{"domain: {devices: {}, cpu: {cores: 300, sockets: 4}}", virtv1.CPU{Sockets: 4, Cores: 300, Threads: 1, MaxSockets: 4}},
		{"domain: {devices: {}, cpu: {sockets: 2, maxSockets: 3}}", virtv1.CPU{Sockets: 2, Cores: 1, Threads: 1, MaxSockets: 3}},
		{"domain: {devices: {}, resources: {limits: {cpu: '3'}, requests: {cpu: '1'}}}", virtv1.CPU{Sockets: 3, Cores: 1, Threads: 1, MaxSockets: 12}},
	} {
		spec := parseSpec(t, tc.spec)
		defaultCPU(spec)
		if diff := cmp.Diff(tc.want, *spec.Domain.CPU); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.spec, diff)
		}
	}
}

func TestDefaultMigration(t *testing.T) {
	m := parse[virtv1.VirtualMachineInstanceMigration](t, "spec: {vmiName: web}")
	DefaultMigration(m)
	checkYAML(t, `
metadata: {labels: {kubevirt.io/vmi-name: web}, finalizers: [kubevirt.io/migrationJobFinalize]}
spec: {vmiName: web}`, m)
}

func TestPolicyFrom(t *testing.T) {
	kv := parse[virtv1.KubeVirt](t, `
spec:
  configuration:
    machineType: pc-q35-9.0
    evictionStrategy: LiveMigrate
    network: {defaultNetworkInterface: bridge, permitBridgeInterfaceOnPodNetwork: false}
    developerConfiguration: {featureGates: [PortRangesSpec], disabledFeatureGates: [PasstBinding]}`)
	p := PolicyFrom(kv)
	if p.MachineType != "pc-q35-9.0" || p.NetworkInterface != "bridge" || p.BridgeOnPod || *p.EvictionStrategy != virtv1.EvictionStrategyLiveMigrate {
		t.Errorf("policy %+v", p)
	}
	for gate, want := range map[string]bool{GatePortRanges: true, GatePasstBinding: false, GateDecentralizedLiveMigration: true, GateNetworkDevicesWithDRA: false} {
		if got := p.Gates(gate); got != want {
			t.Errorf("gate %s: %t, want %t", gate, got, want)
		}
	}
	if !PolicyFrom(&virtv1.KubeVirt{}).Gates(GatePasstBinding) || DefaultPolicy().Gates(GatePasstBinding) {
		t.Error("passt: want it on by a KubeVirt object that does not disable it, and off without an object")
	}
}

func TestWarnings(t *testing.T) {
	vm := parse[virtv1.VirtualMachine](t, `
spec:
  running: true
  template:
    metadata: {annotations: {sidecar.istio.io/inject: "True"}}
    spec: {domain: {devices: {interfaces: [{name: a, masquerade: {}, ports: [{port: 15001}, {port: 80}, {port: 49153}]}]}}}`)
	if diff := cmp.Diff([]string{
		"spec.running is deprecated, please use spec.runStrategy instead.",
		"interface a: port 49153 is reserved and never reaches the guest; choose another port",
		"interface a: port 15001 belongs to the mesh sidecar and never reaches the guest; choose another port",
	}, WarnVM(vm)); diff != "" {
		t.Errorf("warnings of a VM (-want +got):\n%s", diff)
	}
	local := parse[corev1.Service](t, "spec: {type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80, targetPort: 15090}]}")
	if got := WarnService(local, true); len(got) != 2 || !strings.Contains(got[0], "downtime") || !strings.Contains(got[1], "15090") {
		t.Errorf("warnings of a Service: %q", got)
	}
	cluster := parse[corev1.Service](t, "spec: {type: LoadBalancer, externalTrafficPolicy: Cluster, ports: [{port: 15090}]}")
	if got := WarnService(cluster, false); len(got) > 0 {
		t.Errorf("warnings of a harmless Service: %q", got)
	}
}
