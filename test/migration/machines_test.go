package migration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The limits of the cluster are out of the way: the machines of a test migrate at the same time.
const settings = `
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata:
  name: kubevirt-hyperconverged
  annotations: {hco.kubevirt.io/deployPasstNetworkBinding: "true"}
spec:
  liveMigrationConfig: {parallelMigrationsPerCluster: 20, parallelOutboundMigrationsPerNode: 20, completionTimeoutPerGiB: 800, progressTimeout: {{.progress}}}
`

// tenant is a layer 2 network that machines take with them, and a pod on it that talks to them.
const tenant = `
apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: tenant}
spec:
  topology: Layer2
  layer2: {role: Primary, subnets: ["10.77.0.0/16"], ipam: {lifecycle: Persistent}}
---
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node-1}
  containers:
    - {name: toolbox, image: "patchbay.io/guest/toolbox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "86400"]}
`

// A machine sends back what it gets on port 9000, and keeps it. onDisk is copied to the other node with its disk, inMemory has none.
const machine = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    metadata: {labels: {machine: {{.name}}}, annotations: {patchbay.io/migrate-still: "{{.still}}"}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - {weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [{{.node}}]}]}}
      domain:
        memory: {guest: {{.memory}}}
        {{.firmware}}
        devices:
          panicDevices: [{model: isa}]
          disks: [{{.disks}}{name: seed, disk: {bus: virtio}}]
          interfaces: {{.interfaces}}
      networks: {{.networks}}
      volumes:
        {{.volumes}}
        - name: seed
          cloudInitNoCloud:
            userData: |
              #cloud-config
              runcmd:
                - [sh, -c, "mkfifo /tmp/back; (nc -l -p 9000 </tmp/back | tee /tmp/got >/tmp/back) >/dev/null 2>&1 &"]
            networkData: "version: 2\nethernets: {eth0: {dhcp4: true}, eth1: {dhcp4: true}, eth2: {dhcp4: true}}\n"
`

var onDisk = map[string]string{
	"memory": "128Mi", "firmware": "", "disks": "{name: root, disk: {bus: virtio}}, ",
	"volumes": `- {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}`,
}

var inMemory = map[string]string{
	"memory": "320Mi", "disks": "", "volumes": "",
	"firmware": `firmware: {kernelBoot: {kernelArgs: "quiet console=ttyS0 net.ifnames=0",
          container: {image: "patchbay.io/guest/tiny-kernel:latest", kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}}}`,
}

// live is a kind of machine whose memory is copied while it runs. Others stand still for that, so that the end of a copy is sure to come.
func live(kind map[string]string) map[string]string {
	other := maps.Clone(kind)
	other["still"] = "false"
	return other
}

// policy is how one machine migrates.
const policy = `
apiVersion: migrations.kubevirt.io/v1alpha1
kind: MigrationPolicy
metadata: {name: {{.name}}}
spec:
  selectors: {virtualMachineInstanceSelector: {machine: {{.name}}}}
  {{.rules}}
`

// guest is a machine of a test.
type guest struct {
	ns, name, ip string
}

func newTenant(t *testing.T) string {
	t.Helper()
	ns := lab.Namespace(t, "k8s.ovn.org/primary-user-defined-network", "")
	configure(t, "150")
	lab.Apply(t, ns, tenant, nil)
	lab.PodReady(t, ns, "box")
	return ns
}

// configure sets the whole cluster's time without progress, in seconds.
func configure(t *testing.T, progress string) {
	t.Helper()
	lab.Apply(t, "patchbay-system", settings, map[string]string{"progress": progress})
	lab.Eventually(t, limit, "the configuration is in force", func() error {
		out, err := lab.Kubectl(t.Context(), "get", "kubevirt", "-n", "patchbay-system", "-o", "jsonpath={.items[0].spec.configuration.migrations.progressTimeout}")
		if err == nil && out != progress {
			err = fmt.Errorf("the time is %q", out)
		}
		return err
	})
}

func startMachine(t *testing.T, ns, name, node string, kind map[string]string) {
	t.Helper()
	values := map[string]string{"interfaces": "[{name: tenant, binding: {name: l2bridge}}]", "networks": "[{name: tenant, pod: {}}]", "still": "true"}
	maps.Copy(values, kind)
	values["name"], values["node"] = name, node
	lab.Apply(t, ns, machine, values)
}

// started waits for a machine's address.
func started(t *testing.T, ns, name string) guest {
	t.Helper()
	pod := lab.LauncherPod(t, lab.Running(t, ns, name))
	var networks map[string]struct {
		Address string `json:"ip_address"`
		Role    string `json:"role"`
	}
	if err := json.Unmarshal([]byte(pod.Annotations["k8s.ovn.org/pod-networks"]), &networks); err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if prefix, err := netip.ParsePrefix(n.Address); err == nil && n.Role == "primary" {
			return guest{ns: ns, name: name, ip: prefix.Addr().String()}
		}
	}
	t.Fatalf("pod %s has no address on the tenant's network: %v", pod.Name, networks)
	return guest{}
}

// rules sets how the machine migrates from now on.
func (g guest) rules(t *testing.T, rules string) {
	t.Helper()
	lab.Apply(t, g.ns, policy, map[string]string{"name": g.name, "rules": rules})
}

func (g guest) instance(ctx context.Context) (*virtv1.VirtualMachineInstance, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	return vmi, lab.Client.Get(ctx, client.ObjectKey{Namespace: g.ns, Name: g.name}, vmi)
}

func (g guest) node(t *testing.T) string {
	t.Helper()
	return lab.Running(t, g.ns, g.name).Status.NodeName
}

// move begins a migration, with annotations given as key, value.
func (g guest) move(t *testing.T, to map[string]string, annotations ...string) *virtv1.VirtualMachineInstanceMigration {
	t.Helper()
	m := &virtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: g.ns, GenerateName: g.name + "-", Annotations: map[string]string{}},
		Spec:       virtv1.VirtualMachineInstanceMigrationSpec{VMIName: g.name, AddedNodeSelector: to},
	}
	for n := 0; n+1 < len(annotations); n += 2 {
		m.Annotations[annotations[n]] = annotations[n+1]
	}
	if err := lab.Client.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// reaches waits until a migration has a phase, or another end.
func reaches(t *testing.T, m *virtv1.VirtualMachineInstanceMigration, phase virtv1.VirtualMachineInstanceMigrationPhase) {
	t.Helper()
	lab.Eventually(t, limit, "migration "+m.Name+" is "+string(phase), func() error {
		if err := lab.Client.Get(t.Context(), client.ObjectKeyFromObject(m), m); err != nil {
			return err
		}
		if m.Status.Phase != phase && !m.IsFinal() {
			return fmt.Errorf("phase %s", m.Status.Phase)
		}
		return nil
	})
	if m.Status.Phase != phase {
		t.Fatalf("migration %s is %s, want %s: %s", m.Name, m.Status.Phase, phase, reasonOf(m))
	}
}

// reasonOf is what the object says of a failure.
func reasonOf(m *virtv1.VirtualMachineInstanceMigration) string {
	if m.Status.MigrationState == nil {
		return ""
	}
	return m.Status.MigrationState.FailureReason
}

func inBox(t *testing.T, ns, command string) string {
	t.Helper()
	out, err := lab.InPod(t.Context(), ns, "box", "sh", "-c", command)
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return strings.TrimSpace(out)
}
