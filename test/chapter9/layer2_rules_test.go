package chapter9

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// rulesManifest is nadManifest with every field given.
const rulesManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.nad}}}
spec:
  config: '{"cniVersion": "{{.version}}", "name": "{{.network}}", "type": "{{.type}}", "topology": "{{.topology}}", {{.more}} "netAttachDefName": "{{.self}}"}'
`

// 9.5: what an attachment definition of the overlay must say, and who may say it.
func TestLayer2Rules(t *testing.T) {
	ns := cluster.Namespace(t)
	definition := func(key, value string) map[string]string {
		values := map[string]string{"nad": "blue-l2", "version": "0.3.1", "network": ns + "-blue-l2", "type": "ovn-k8s-cni-overlay", "topology": "layer2", "more": "", "self": ns + "/blue-l2"}
		values[key] = value
		return values
	}
	t.Run("9.5-C2 ipam is refused", func(t *testing.T) {
		for _, ipam := range []string{`"ipam": {"subnet": "10.1.0.0/24"},`, `"ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},`} {
			refusedWith(t, ns, rulesManifest, definition("more", ipam), "IPAM key is not supported")
		}
	})
	t.Run("9.5.1.1-C1 the version", func(t *testing.T) {
		refusedWith(t, ns, rulesManifest, definition("version", "3.0.1"), `cniVersion "3.0.1" is not known; write 0.3.1`)
	})
	t.Run("9.5.1.1-C4 the topology", func(t *testing.T) {
		refusedWith(t, ns, rulesManifest, definition("topology", "Layer2"), `topology "Layer2" is not known; write layer2`)
	})
	t.Run("9.5.1.1-C7 the definition's own name", func(t *testing.T) {
		for _, self := range []string{"blue-l2", ns + "/other", "default/blue-l2"} {
			refusedWith(t, ns, rulesManifest, definition("self", self), "is inconsistent with config")
		}
	})
	t.Run("9.5.1.1-C3 the type is the overlay's", func(t *testing.T) {
		values := definition("type", "ovn-k8s-cni-underlay")
		values["nad"] = "mistyped"
		cluster.Apply(t, ns, rulesManifest, values) // might be a plugin that a node has
		cluster.Apply(t, ns, selectingManifest, map[string]string{"name": "lost", "node": "node-1", "networks": "mistyped"})
		cluster.Eventually(t, soon, "an event says that nothing is of this type", func() error {
			var events corev1.EventList
			if err := cluster.Client.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
				return err
			}
			for _, e := range events.Items {
				if strings.Contains(e.Message, `no program of the CNI plugin "ovn-k8s-cni-underlay"`) {
					return nil
				}
			}
			return fmt.Errorf("%d events, none about it", len(events.Items))
		})
	})
	const nad, vm = "network-attachment-definitions.k8s.cni.cncf.io", "virtualmachines.kubevirt.io"
	if out, err := cluster.Kubectl(t.Context(), "create", "rolebinding", "jane-edits", "--clusterrole=edit", "--user=jane", "-n", ns); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	t.Run("9.5.1.1-C10 a cluster administrator makes it", func(t *testing.T) {
		if may(t, "jane", "create", nad, ns) || !may(t, "jane", "get", nad, ns) {
			t.Error("who may edit in a namespace sees its definitions, and does not make them")
		}
		cluster.Apply(t, ns, rulesManifest, definition("version", "0.3.1"))
	})
	t.Run("9.5.2.1-C6 rights on the machine are needed", func(t *testing.T) {
		if may(t, "jack", "update", vm, ns) || may(t, "jane", "update", vm, "default") {
			t.Error("users without rights may attach a machine")
		}
	})
}
