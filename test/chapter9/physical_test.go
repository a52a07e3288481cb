package chapter9

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// physicalPolicy gives the nodes' second card to a bridge for physical networks, and opens the network that joins the nodes.
const physicalPolicy = `
apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata: {name: c9-physical}
spec:
  maxUnavailable: 100%
  desiredState:
    interfaces:
    - name: br-c9
      type: ovs-bridge
      state: {{.state}}
      bridge:
        allow-extra-patch-ports: true
        options: {stp: false}
        port: [{name: eth1}]
    ovn:
      bridge-mappings:
      - {localnet: c9-own, bridge: br-c9, state: {{.mapping}}}
      - {localnet: c9-machine, bridge: br-phys, state: {{.mapping}}}
`

// localnetManifest is an attachment definition of a physical network.
const localnetManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.nad}}}
spec:
  config: '{"cniVersion": "0.3.1", "name": "{{.namespace}}-{{.nad}}", "type": "ovn-k8s-cni-overlay", "topology": "localnet",
    "physicalNetworkName": "{{.physical}}", {{.more}} "netAttachDefName": "{{.namespace}}/{{.nad}}"}'
`

func physicalNetwork(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		_, _ = cluster.TryApply(ctx, "default", physicalPolicy, map[string]string{"state": "absent", "mapping": "absent"})
		if out, err := cluster.Kubectl(ctx, "wait", "nncp", "c9-physical", "--for", "condition=Available", "--timeout", "50s"); err != nil {
			t.Errorf("take the bridge away: %v %s", err, out)
		}
		_, _ = cluster.Kubectl(ctx, "delete", "nncp", "c9-physical")
	})
	cluster.Apply(t, "default", physicalPolicy, map[string]string{"state": "up", "mapping": "present"})
	becomes(t, "c9-physical", "Available")
}

// 9.1: secondary networks that are those of the data centre.
func TestPhysicalNetworks(t *testing.T) {
	physicalNetwork(t)
	ns := cluster.Namespace(t)
	for nad, values := range map[string][2]string{"plain": {"c9-own", ""}, "tagged": {"c9-own", `"vlanID": 100,`}, "machine": {"c9-machine", ""}} {
		cluster.Apply(t, ns, localnetManifest, map[string]string{"namespace": ns, "nad": nad, "physical": values[0], "more": values[1]})
	}
	box := podOn(t, ns, "box", "node-2", "plain,tagged,machine")
	for n, address := range []string{"192.168.60.2/24", "192.168.61.2/24", "172.30.0.202/24"} {
		box.must(fmt.Sprintf("ip addr add %s dev net%d", address, n+1))
	}
	attached{name: "wired", node: "node-1", nics: []string{"plain=plain", "tagged=tagged", "machine=machine"}, data: "version: 2\nethernets:\n" +
		"  eth0:\n    addresses: [192.168.60.1/24]\n  eth1:\n    addresses: [192.168.61.1/24]\n  eth2:\n    addresses: [172.30.0.201/24]\n"}.apply(t, ns)
	guest := cluster.Guest(t, ns, "wired")

	t.Run("9.1-C9 bridged to a physical network, with and without VLAN", func(t *testing.T) {
		for address, tag := range map[string]string{"192.168.60.2": "", "192.168.61.2": "vlan 100"} {
			answersFrom(t, guest, "the machine", address)
			out := captured(t, guest, address, "eth1", "icmp or (vlan and icmp)")
			if out == "" || strings.Contains(out, "vlan") != (tag != "") || !strings.Contains(out, tag) {
				t.Errorf("to %s, want the tag %q on the wire: %s", address, tag, out)
			}
		}
	})
	t.Run("9.1-C12 on NICs of their own, or on the network that joins the nodes", func(t *testing.T) {
		for _, address := range []string{"192.168.60.2", "172.30.0.202", "172.30.0.1"} { // the last one is no node
			answersFrom(t, guest, "the machine", address)
		}
	})
}
