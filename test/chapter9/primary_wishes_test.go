package chapter9

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// wishingVM asks for certain addresses on its namespace's primary network.
const wishingVM = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    metadata:
      annotations:
        network.kubevirt.io/addresses: '{"tenant": ["{{.ip4}}", "{{.ip6}}"]}'
    spec:
      terminationGracePeriodSeconds: 0
      domain:
        memory: {guest: 128Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
          interfaces: [{name: tenant, binding: {name: l2bridge}, macAddress: "{{.mac}}"}]
      networks: [{name: tenant, pod: {}}]
      volumes: [{name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}]
`

// testTenantWishes checks that a machine gets the addresses that it asks for, and that another one that asks for the same waits.
func testTenantWishes(t *testing.T, ns string) {
	wish := func(name, mac string) {
		cluster.Apply(t, ns, wishingVM, map[string]string{"name": name, "ip4": "10.20.7.7", "ip6": "fd00:20::77", "mac": mac})
	}
	t.Run("9.3-C6 wished addresses are given, and not twice", func(t *testing.T) {
		wish("wishes", "02:00:00:00:07:07")
		if got := machineAddresses(t, ns, "wishes"); !slices.Equal(got, []string{"10.20.7.7", "fd00:20::77"}) {
			t.Errorf("the machine has %v", got)
		}
		if got := machineMAC(t, ns, "wishes"); got != "02:00:00:00:07:07" {
			t.Errorf("the machine has the MAC address %s", got)
		}
		wish("thief", "02:00:00:00:07:08")
		cluster.Eventually(t, soon, "an event says whose addresses they are", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "events", "-n", ns, "--field-selector=reason=ErrorAllocatingPod", "-o",
				`jsonpath={range .items[*]}{.involvedObject.name}{" "}{.message}{"\n"}{end}`)
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "virt-launcher-thief-") && strings.Contains(line, "provided IP is already allocated") {
					return nil
				}
			}
			return fmt.Errorf("events: %s (%v)", out, err)
		})
		var vmi virtv1.VirtualMachineInstance
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "thief"}, &vmi); err != nil || vmi.Status.Phase == virtv1.Running {
			t.Errorf("the second machine is %s (%v)", vmi.Status.Phase, err)
		}
	})
	if _, err := cluster.Kubectl(t.Context(), "delete", "vm", "-n", ns, "wishes", "thief"); err != nil {
		t.Fatal(err)
	}
}

const probedPod = `
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: patchbay.io/guest/toolbox:latest
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "while true; do nc -l -p 8080 </dev/null >/dev/null; done"]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

// testTenantProbes checks that the kubelet reaches a pod that nobody else outside of its network does.
func testTenantProbes(t *testing.T, ns string) {
	t.Run("9.3-C1 the kubelet's probes reach pods of the namespace", func(t *testing.T) {
		cluster.Apply(t, ns, probedPod, nil)
		cluster.PodReady(t, ns, "probed")
	})
}
