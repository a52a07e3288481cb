package chapter9

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// attachingManifest is a VM whose devices and networks are given.
const attachingManifest = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 0
      domain:
        memory: {guest: 128Mi}
        devices:
          disks: [{name: root, disk: {bus: virtio}}]
          interfaces: [{{.interfaces}}]
      networks: [{{.networks}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
`

func attachedTo(name, interfaces, networks string) map[string]string {
	return map[string]string{"name": name, "interfaces": interfaces, "networks": networks}
}

// hasField waits until a field of an object contains a text.
func hasField(t *testing.T, ns, object, path, want string) {
	t.Helper()
	cluster.Eventually(t, soon, object+" "+path, func() error {
		out, err := cluster.Kubectl(t.Context(), "get", object, "-n", ns, "-o", "jsonpath={"+path+"}")
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("is %q, want %q", out, want)
		}
		return err
	})
}

// launcherAnnotations waits for the pod of a machine and returns its annotations.
func launcherAnnotations(t *testing.T, ns, name string) string {
	t.Helper()
	annotations := ""
	cluster.Eventually(t, soon, "machine "+name+" has a pod", func() (err error) {
		annotations, err = cluster.Kubectl(t.Context(), "get", "pods", "-n", ns, "-l", "vm.kubevirt.io/name="+name, "-o", "jsonpath={.items[*].metadata.annotations}")
		if err == nil && annotations == "" {
			err = errors.New("no pod")
		}
		return err
	})
	return annotations
}

// 9.3.3: machines on a primary network, as far as the API shows it.
func TestAttachingMachines(t *testing.T) {
	t.Run("9.3.3.2-K2 applying the machine", func(t *testing.T) {
		t.Cleanup(func() {
			_, _ = cluster.Kubectl(context.Background(), "delete", "namespace", "tenant-a", "--timeout=2m")
		})
		applyExample(t, "tenant-namespace.yaml")
		applyExample(t, "tenant-network.yaml")
		if out := applyExample(t, "tenant-machine.yaml"); out != "virtualmachine.kubevirt.io/web-03 created\n" {
			t.Errorf("printed %q", out)
		}
		t.Run("9.3.3-C1 pod network and binding", func(t *testing.T) {
			hasField(t, "tenant-a", "vmi/web-03", ".spec.domain.devices.interfaces[0].binding.name", "l2bridge")
			hasField(t, "tenant-a", "ipamclaim/web-03.tenant-a-net", ".spec.network", "tenant-a_tenant-a-net")
			if pod := launcherAnnotations(t, "tenant-a", "web-03"); !strings.Contains(pod, `"k8s.ovn.org/primary-udn-ipamclaim":"web-03.tenant-a-net"`) {
				t.Errorf("the pod's annotations are %s", pod)
			}
		})
	})
	tenant, plain := tenantNamespace(t), cluster.Namespace(t)
	primaryUDN(t, tenant, "net", "10.224.0.0/24")
	const pod = "{name: a, pod: {}}"
	t.Run("9.3.3.2-C1 the machine lives in the network's namespace", func(t *testing.T) {
		cluster.Apply(t, plain, attachingManifest, attachedTo("elsewhere", "{name: a, masquerade: {}}", pod))
		launcherAnnotations(t, plain, "elsewhere")
		out, err := cluster.Kubectl(t.Context(), "get", "ipamclaims", "-n", plain, "-o", "name")
		if err != nil || out != "" {
			t.Errorf("%v, claims %s", err, out)
		}
	})
	t.Run("9.3.3.2-C2 l2bridge or passt", func(t *testing.T) {
		cluster.Apply(t, tenant, attachingManifest, attachedTo("direct", "{name: a, binding: {name: l2bridge}}", pod))
		launcherAnnotations(t, tenant, "direct")
		cluster.Apply(t, tenant, attachingManifest, attachedTo("odd", "{name: a, binding: {name: l3bridge}}", pod))
		hasField(t, tenant, "vmi/odd", ".status.conditions", "unable to find the network binding plugin 'l3bridge' in Kubevirt configuration")
	})
	t.Run("9.3.3.2-C3 l2bridge is the default", func(t *testing.T) {
		cluster.Apply(t, tenant, bareManifest, nil)
		cluster.Apply(t, tenant, attachingManifest, attachedTo("unbound", "{name: a}", pod))
		for _, name := range []string{"bare", "unbound"} {
			hasField(t, tenant, "vmi/"+name, ".spec.domain.devices.interfaces[0].binding.name", "l2bridge")
			launcherAnnotations(t, tenant, name)
		}
		hasField(t, tenant, "ipamclaim/bare.default", ".metadata.ownerReferences[0].kind", "VirtualMachine")
	})
	t.Run("9.3.3.2-C4 names match", func(t *testing.T) {
		refusedWith(t, tenant, attachingManifest, attachedTo("bad", "{name: a, binding: {name: l2bridge}}", "{name: b, pod: {}}"), "not found")
	})
	t.Run("9.3.3.2-C5 passt has to be enabled", func(t *testing.T) {
		refusedWith(t, tenant, attachingManifest, attachedTo("core", "{name: a, passtBinding: {}}", pod), "PasstBinding feature gate is not enabled")
		cluster.Apply(t, tenant, attachingManifest, attachedTo("plugin", "{name: a, binding: {name: passt}}", pod))
		hasField(t, tenant, "vmi/plugin", ".status.conditions", "unable to find the network binding plugin 'passt' in Kubevirt configuration")
	})
	t.Run("9.3.3.2-C6 one binding", func(t *testing.T) {
		refusedWith(t, tenant, attachingManifest, attachedTo("two", "{name: a, masquerade: {}, binding: {name: l2bridge}}", pod), "must have exactly one binding method")
	})
}

// overlayDefinitionManifest is an attachment definition of the overlay.
const overlayDefinitionManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.name}}}
spec:
  config: '{"cniVersion": "1.0.0", "name": "{{.network}}", "type": "ovn-k8s-cni-overlay", "topology": "{{.topology}}", "netAttachDefName": "{{.namespace}}/{{.name}}"}'
`

func overlayDefinition(ns, name, topology string) map[string]string {
	return map[string]string{"name": name, "network": ns + "-" + name, "topology": topology, "namespace": ns}
}

// 9.1.4: secondary networks, as far as the API shows it.
func TestSecondaryNetworksOverview(t *testing.T) {
	ns := cluster.Namespace(t)
	t.Run("9.1.4-C4 first the definition, then the machine", func(t *testing.T) {
		cluster.Apply(t, ns, attachingManifest, attachedTo("only", "{name: data, bridge: {}}", "{name: data, multus: {networkName: data}}"))
		hasField(t, ns, "vmi/only", ".status.conditions", "failed to locate network attachment definition "+ns+"/data")
		cluster.Apply(t, ns, overlayDefinitionManifest, overlayDefinition(ns, "data", "layer2"))
		t.Run("9.1.4-C1 the pod network need not be listed", func(t *testing.T) {
			if pod := launcherAnnotations(t, ns, "only"); !strings.Contains(pod, `\"name\":\"data\"`) {
				t.Errorf("the pod's annotations are %s", pod)
			}
			out, err := cluster.Kubectl(t.Context(), "get", "vmi", "only", "-n", ns, "-o", "jsonpath={.spec.networks[*].name}")
			if err != nil || out != "data" {
				t.Errorf("%v, networks %s", err, out)
			}
		})
	})
	t.Run("9.1.4-C2 the topology is layer2", func(t *testing.T) {
		refusedWith(t, ns, overlayDefinitionManifest, overlayDefinition(ns, "case", "Layer2"), `topology "Layer2" is not known; write layer2`)
	})
}
