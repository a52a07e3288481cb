package chapter9

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"patchbay/test/local"
)

// How long things may take before a test gives up: generous, because guests are emulated and the machine may be busy. No test
// measures time.
const (
	boot = 3 * time.Minute // an emulated guest's services
	soon = time.Minute     // a change to take effect
)

// vmManifest is a virtual machine with one masquerade NIC. Extra lines can be put into the interface, the network, the
// devices and the volumes.
const vmManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: {{.name}}
spec:
  runStrategy: Always
  template:
    metadata:
      labels: {app: {{.name}}, {{.labels}}}
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      domain:
        memory: {guest: 128Mi}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: seed, disk: {bus: virtio}}
          interfaces:
            - {name: default, masquerade: {}, {{.interface}}}
      networks:
        - {name: default, pod: { {{.network}} }}
      volumes:
        - name: root
          containerDisk: {image: "patchbay.io/guest/tiny:latest"}
        - name: seed
          cloudInitNoCloud:
            userData: "#cloud-config\n"
            networkData: |
{{.networkData}}
`

// machine is a VM of vmManifest; empty fields take what most tests want.
type machine struct {
	name, node, labels, iface, network, networkData string
}

func (m machine) values() map[string]string {
	or := func(value, otherwise string) string {
		if value == "" {
			return otherwise
		}
		return value
	}
	data := or(m.networkData, "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    dhcp6: true\n")
	return map[string]string{
		"name":        m.name,
		"node":        or(m.node, "node-1"),
		"labels":      or(m.labels, "test: chapter9"),
		"interface":   or(m.iface, "model: virtio"),
		"network":     m.network,
		"networkData": "              " + strings.ReplaceAll(strings.TrimSpace(data), "\n", "\n              "),
	}
}

func (m machine) apply(t *testing.T, namespace string) string {
	t.Helper()
	return cluster.Apply(t, namespace, vmManifest, m.values())
}

const podManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: {{.name}}
  labels: {app: {{.name}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: {{.node}}}
  containers:
    - name: toolbox
      image: patchbay.io/guest/toolbox:latest
      imagePullPolicy: IfNotPresent
      command: [sleep, "86400"]
`

// pod makes a pod with network tools and waits for it.
func pod(t *testing.T, namespace, name, node string) toolbox {
	t.Helper()
	cluster.Apply(t, namespace, podManifest, map[string]string{"name": name, "node": node})
	pod := cluster.PodReady(t, namespace, name)
	box := toolbox{t: t, namespace: namespace, name: name}
	for _, ip := range pod.Status.PodIPs {
		box.ips = append(box.ips, ip.IP)
	}
	return box
}

// toolbox is a pod that tests talk from.
type toolbox struct {
	t         *testing.T
	namespace string
	name      string
	ips       []string
}

func (b toolbox) run(command string) (string, error) {
	out, err := cluster.InPod(b.t.Context(), b.namespace, b.name, "sh", "-c", command)
	return strings.TrimSpace(out), err
}

// reach is how a connection attempt ended.
type reach string

const (
	answered reach = "answered"
	refused  reach = "refused"
	silent   reach = "silent" // nobody answered in time
)

// connect tries a TCP connection from the pod.
func (b toolbox) connect(ip string, port int) reach {
	b.t.Helper()
	out, err := b.run(fmt.Sprintf("nc -w 3 %s %d </dev/null 2>&1", ip, port))
	switch {
	case err == nil:
		return answered
	case strings.Contains(out, "refused"):
		return refused
	}
	var failed *local.CommandError
	if !errors.As(err, &failed) || errors.Is(err, context.Canceled) {
		b.t.Fatalf("connect to %s port %d: %v", ip, port, err)
	}
	return silent
}

func (b toolbox) expect(ip string, port int, want reach) {
	b.t.Helper()
	if got := b.connect(ip, port); got != want {
		b.t.Errorf("%s: port %d from pod %s: %s, want %s", ip, port, b.name, got, want)
	}
}

// refusedWith applies a manifest that must be refused, with a text that contains want.
func refusedWith(t *testing.T, namespace, manifest string, values map[string]string, want string) {
	t.Helper()
	out, err := cluster.TryApply(t.Context(), namespace, manifest, values)
	if err == nil {
		t.Fatalf("accepted, want a refusal that says %q: %s", want, out)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("refused with %q, want a text with %q", err, want)
	}
}

// ipv4 and ipv6 pick the address of one family.
func ipv4(ips []string) string { return pick(ips, false) }
func ipv6(ips []string) string { return pick(ips, true) }

func pick(ips []string, six bool) string {
	for _, ip := range ips {
		if strings.Contains(ip, ":") == six {
			return ip
		}
	}
	return ""
}
