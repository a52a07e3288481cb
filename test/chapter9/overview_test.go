package chapter9

import (
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/test/local"
)

// bareManifest is a VM that says nothing about networks.
const bareManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: bare}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 5
      nodeSelector: {kubernetes.io/hostname: node-1}
      domain:
        memory: {guest: 128Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
`

// 9.1: what the overview says of the default network.
func TestOverview(t *testing.T) {
	ns := cluster.Namespace(t)
	cluster.Apply(t, ns, bareManifest, nil)
	box := pod(t, ns, "peer", "node-2")
	guest := cluster.Guest(t, ns, "bare")
	vmi := cluster.Running(t, ns, "bare")

	t.Run("9.1.2-C1 a VM without networks is on the pod network", func(t *testing.T) {
		if len(vmi.Spec.Networks) != 1 || vmi.Spec.Networks[0].Pod == nil || vmi.Spec.Domain.Devices.Interfaces[0].Masquerade == nil {
			t.Errorf("networks %+v, interfaces %+v", vmi.Spec.Networks, vmi.Spec.Domain.Devices.Interfaces)
		}
		vm := &virtv1.VirtualMachine{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(vmi), vm); err != nil {
			t.Fatal(err)
		}
		if len(vm.Spec.Template.Spec.Networks) != 0 {
			t.Errorf("the VM's own template was changed: %+v", vm.Spec.Template.Spec.Networks)
		}
	})
	t.Run("9.1-C3 pods and VMs reach each other", func(t *testing.T) {
		guest.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet 10.0.2.2/24"))
		for _, ip := range box.ips {
			guest.Eventually(cluster, boot, "ping -c1 -W3 "+ip, contains(" 0% packet loss"))
		}
		for _, ip := range vmi.Status.Interfaces[0].IPs {
			if out, err := box.run("ping -c1 -W3 " + ip); err != nil {
				t.Errorf("pod to VM at %s: %v %s", ip, err, out)
			}
		}
	})
	t.Run("9.1-C5 the default network gives connectivity, services and addresses", func(t *testing.T) {
		out := guest.Eventually(cluster, boot, "nslookup kubernetes.default.svc.cluster.local", contains("10.96.0.1"))
		if !strings.Contains(out, "10.96.0.1") {
			t.Error(out)
		}
		out = guest.Run("nc -w 3 10.96.0.1 443 </dev/null && echo open")
		if !strings.Contains(out, "open") {
			t.Errorf("the API server's Service does not answer the guest: %q", out)
		}
	})
	t.Run("9.1-C7 the default network is an overlay over the nodes' network", func(t *testing.T) {
		seesGeneve(t, guest, ipv4(box.ips))
	})
	t.Run("kinds, short names and columns", func(t *testing.T) {
		vm, err := cluster.Kubectl(t.Context(), "get", "vms", "-n", ns)
		if err != nil || strings.Join(strings.Fields(strings.SplitN(vm, "\n", 2)[0]), " ") != "NAME AGE STATUS READY" {
			t.Errorf("kubectl get vms prints %q, %v", vm, err)
		}
		out, err := cluster.Kubectl(t.Context(), "get", "vmis", "-n", ns)
		if err != nil || strings.Join(strings.Fields(strings.SplitN(out, "\n", 2)[0]), " ") != "NAME AGE PHASE IP NODENAME READY" {
			t.Errorf("kubectl get vmis prints %q, %v", out, err)
		}
		if !strings.Contains(out, vmi.Status.Interfaces[0].IP) {
			t.Errorf("the IP %s is not in %q", vmi.Status.Interfaces[0].IP, out)
		}
	})
}

// seesGeneve checks that what a guest on node-1 sends to an address on node-2 is tunnelled.
func seesGeneve(t *testing.T, guest *local.Guest, to string) {
	t.Helper()
	if out := captured(t, guest, to, "eth0", "udp port 6081"); !strings.Contains(out, "Geneve") {
		t.Errorf("no Geneve packets between the nodes: %q", out)
	}
}

// captured returns the first packets that pass a filter on a card of node-2 while a guest pings somebody.
func captured(t *testing.T, guest *local.Guest, to, card, filter string) string {
	t.Helper()
	guest.Run("ping -c40 -i0.5 -W1 " + to + " >/dev/null 2>&1 &")
	out, _ := cluster.InNode(t.Context(), "node-2", "timeout", "15", "tcpdump", "-c2", "-e", "-nni", card, filter) // prints nothing when nothing came
	guest.Run("killall ping 2>/dev/null; true")
	return out
}
