package migration

import (
	"fmt"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// networks are an overlay's and a physical one, here the one that joins the nodes, and a pod on both.
const networks = `
apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata: {name: migration-physical}
spec:
  maxUnavailable: 100%
  desiredState:
    ovn: {bridge-mappings: [{localnet: physical, bridge: br-phys, state: present}]}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: overlay, namespace: {{.ns}}}
spec:
  config: '{"cniVersion": "0.3.1", "name": "overlay", "type": "ovn-k8s-cni-overlay", "topology": "layer2", "subnets": "10.78.0.0/24",
    "netAttachDefName": "{{.ns}}/overlay"}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: physical, namespace: {{.ns}}}
spec:
  config: '{"cniVersion": "0.3.1", "name": "physical", "type": "ovn-k8s-cni-overlay", "topology": "localnet", "physicalNetworkName": "physical",
    "subnets": "10.79.0.0/24", "netAttachDefName": "{{.ns}}/physical"}'
---
apiVersion: v1
kind: Pod
metadata:
  name: box
  namespace: {{.ns}}
  annotations: {k8s.v1.cni.cncf.io/networks: "overlay,physical"}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node-1}
  containers:
    - {name: toolbox, image: "patchbay.io/guest/toolbox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "86400"]}
`

// with is a kind of machine with other network cards.
func with(kind map[string]string, interfaces, networks string) map[string]string {
	other := maps.Clone(kind)
	other["interfaces"], other["networks"] = interfaces, networks
	return other
}

// TestNetworks moves machines whose networks move in different ways: what is the machine's own stays, what is its pod's is the new pod's.
func TestNetworks(t *testing.T) {
	configure(t, "150")
	ns := lab.Namespace(t)
	lab.Apply(t, ns, networks, map[string]string{"ns": ns})
	t.Cleanup(func() { _, _ = lab.Kubectl(t.Context(), "delete", "nncp", "migration-physical") })
	lab.PodReady(t, ns, "box")
	startMachine(t, ns, "many", "node-1", with(onDisk, "[{name: own, masquerade: {}}, {name: overlay, bridge: {}}, {name: physical, bridge: {}}]",
		"[{name: own, pod: {}}, {name: overlay, multus: {networkName: overlay}}, {name: physical, multus: {networkName: physical}}]"))
	startMachine(t, ns, "passt", "node-1", with(onDisk, "[{name: own, passtBinding: {}}]", "[{name: own, pod: {}}]"))
	many, passt := guest{ns: ns, name: "many"}, guest{ns: ns, name: "passt"}
	w := watch(t, ns)
	before := map[string]string{}
	for _, g := range []guest{many, passt} {
		for nic, ip := range g.addresses(t) {
			before[g.name+"/"+nic] = ip
			answers(t, ns, ip)
		}
	}
	talk := startTalk(t, guest{ns: ns, name: "many", ip: before["many/overlay"]})
	moves := []*virtv1.VirtualMachineInstanceMigration{many.move(t, nil), passt.move(t, nil)}
	for _, m := range moves {
		reaches(t, m, virtv1.MigrationSucceeded)
	}
	t.Run("several NICs", func(t *testing.T) {
		w.alone(t, "many")
		talk.goesOn(t)
		now := many.addresses(t)
		if now["overlay"] != before["many/overlay"] || now["physical"] != before["many/physical"] || now["own"] == before["many/own"] {
			t.Errorf("the machine had %v and has %v", before, now)
		}
		for _, ip := range now {
			answers(t, ns, ip)
		}
	})
	t.Run("passt", func(t *testing.T) {
		w.alone(t, "passt")
		now := passt.addresses(t)["own"]
		if now == before["passt/own"] {
			t.Errorf("the machine has still its old pod's address %s", now)
		}
		answers(t, ns, now) // it asked for the address of its new pod
	})
}

// addresses are those of the machine's network cards, once all are known and the pod network's is its pod's.
func (g guest) addresses(t *testing.T) map[string]string {
	t.Helper()
	vmi := lab.Running(t, g.ns, g.name)
	var pod *corev1.Pod
	found := map[string]string{}
	lab.Eventually(t, limit, "the addresses of "+g.name, func() error {
		var err error
		if vmi, err = g.instance(t.Context()); err != nil {
			return err
		}
		pod = lab.LauncherPod(t, vmi)
		for _, i := range vmi.Status.Interfaces {
			found[i.Name] = i.IP
		}
		for _, i := range vmi.Spec.Domain.Devices.Interfaces {
			if found[i.Name] == "" {
				return fmt.Errorf("%s has none", i.Name)
			}
		}
		if found["own"] != pod.Status.PodIP {
			return fmt.Errorf("it shows %s, its pod has %s", found["own"], pod.Status.PodIP)
		}
		return nil
	})
	return found
}

// answers waits until the guest's web server answers the pod.
func answers(t *testing.T, ns, ip string) {
	t.Helper()
	lab.Eventually(t, limit, ip+" answers", func() error {
		_, err := lab.InPod(t.Context(), ns, "box", "curl", "-sf", "-m", "3", "http://"+ip+"/healthz")
		return err
	})
}
