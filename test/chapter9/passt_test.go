package chapter9

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/test/local"
)

// passtVM is a machine whose network is a process in its pod, and which is ready when its web server answers there.
const passtVM = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      readinessProbe:
        httpGet: {port: 80, path: /healthz}
        periodSeconds: 2
        timeoutSeconds: 5
      domain:
        memory: {guest: 128Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}, {name: seed, disk: {bus: virtio}}]
          interfaces: [{name: a, {{.binding}}}]
      networks: [{name: a, pod: {}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
        # passt's router advertisements do not ask for DHCPv6; the guest has to.
        - {name: seed, cloudInitNoCloud: {networkData: "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    dhcp6: true\n"}}
`

const passtHCO = `
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata:
  name: kubevirt-hyperconverged
  annotations: {hco.kubevirt.io/deployPasstNetworkBinding: "true"}
spec: {}
`

// enablePasst allows the binding until the test ends.
func enablePasst(t *testing.T) {
	t.Helper()
	const home = "patchbay-system"
	registered := func(ctx context.Context, want bool) {
		t.Helper()
		cluster.Eventually(t, soon, "the KubeVirt object follows", func() error {
			out, err := cluster.Kubectl(ctx, "get", "kubevirt", "-n", home, "-o", "jsonpath={.items[*].spec.configuration.network.binding}")
			if err == nil && strings.Contains(out, `"passt"`) != want {
				err = fmt.Errorf("bindings are %s, want passt: %t", out, want)
			}
			return err
		})
	}
	cluster.Apply(t, home, passtHCO, nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, args := range [][]string{
			{"annotate", "hco", hcoName, "-n", home, "hco.kubevirt.io/deployPasstNetworkBinding=false", "--overwrite"},
			{"delete", "hco", hcoName, "-n", home},
		} {
			if out, err := cluster.Kubectl(ctx, args...); err != nil {
				t.Errorf("%s: %v", out, err)
			}
			if args[0] == "annotate" {
				out, _ := cluster.Kubectl(ctx, "wait", "--for=jsonpath={.spec.configuration.developerConfiguration.disabledFeatureGates[0]}=PasstBinding",
					"kubevirt", "--all", "-n", home, "--timeout=30s")
				t.Log(out)
			}
		}
	})
	registered(t.Context(), true)
}

// 9.3.3: the passt binding, on a primary network and on the pod network.
func TestPasst(t *testing.T) {
	enablePasst(t)
	tenant, plain := dataNamespace(t), cluster.Namespace(t)
	cluster.Apply(t, tenant, passtVM, map[string]string{"name": "web", "node": "node-1", "binding": "binding: {name: passt}"})
	cluster.Apply(t, plain, passtVM, map[string]string{"name": "core", "node": "node-2", "binding": "passtBinding: {}"})
	cluster.Apply(t, plain, passtVM, map[string]string{"name": "dead", "node": "node-2", "binding": "binding: {name: passt}, ports: [{port: 8080}]"})
	inTenant, inPlain := pod(t, tenant, "box", "node-2"), pod(t, plain, "box", "node-1")

	t.Run("9.3.3.2-C5 passt works on a primary network when it is enabled", func(t *testing.T) {
		instance := cluster.Running(t, tenant, "web")
		ips := tenantAddresses(t, cluster.LauncherPod(t, instance))
		hasAddresses(t, instance, ips)
		web := cluster.Guest(t, tenant, "web")
		web.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+ips[0]+"/16"))
		web.Eventually(cluster, boot, "ip -6 -o addr show dev eth0", contains("inet6 "+ips[1]+"/"))
		web.Eventually(cluster, soon, "ip route show default", contains("via 10.20.0.1"))
		passesThroughPasst(t, web, ips, inTenant, tenantAddresses(t, cluster.PodReady(t, tenant, "box")))
	})
	t.Run("9.3.3-C3 passt is the user-space network of a machine", func(t *testing.T) {
		instance := cluster.Running(t, plain, "core")
		launcher := cluster.LauncherPod(t, instance)
		ips := []string{ipv4(podIPs(launcher)), ipv6(podIPs(launcher))}
		hasAddresses(t, instance, podIPs(launcher))
		core := cluster.Guest(t, plain, "core")
		core.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+ips[0]+"/"))
		passesThroughPasst(t, core, ips, inPlain, []string{ipv4(inPlain.ips), ipv6(inPlain.ips)})
		for _, container := range launcher.Spec.Containers {
			if c := container.SecurityContext; len(c.Capabilities.Add) != 0 || *c.AllowPrivilegeEscalation {
				t.Errorf("container %s has the privileges %+v", container.Name, c)
			}
		}
	})
	t.Run("9.3.3-C4 readiness is probed over HTTP", func(t *testing.T) {
		for ns, name := range map[string]string{tenant: "web", plain: "core"} {
			hasField(t, ns, "vm/"+name, `.status.conditions[?(@.type=="Ready")].status`, "True")
		}
		dead := cluster.LauncherPod(t, cluster.Running(t, plain, "dead"))
		inPlain.expect(ipv4(podIPs(dead)), 80, refused) // only the listed port leads to the guest
		if local.Ready(dead.Status.Conditions, corev1.PodReady) {
			t.Error("a pod whose probe cannot succeed is ready")
		}
	})
}

// podIPs are a pod's addresses in the pod network.
func podIPs(pod *corev1.Pod) (ips []string) {
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

func hasAddresses(t *testing.T, instance *virtv1.VirtualMachineInstance, want []string) {
	t.Helper()
	if got := fmt.Sprint(instance.Status.Interfaces[0].IPs); got != fmt.Sprint(want) {
		t.Errorf("machine %s has the addresses %s, its pod %s", instance.Name, got, want)
	}
}

// passesThroughPasst checks both directions between a guest and a pod.
func passesThroughPasst(t *testing.T, g *local.Guest, guest []string, box toolbox, boxIPs []string) {
	t.Helper()
	for n := range guest {
		cluster.Eventually(t, boot, "the pod reaches "+guest[n], func() error {
			if r := box.connect(guest[n], 80); r != answered {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		answersFrom(t, g, "the guest", boxIPs[n])
	}
	g.Eventually(cluster, soon, "nslookup kubernetes.default.svc.cluster.local", contains("10.96.0.1"))
}
