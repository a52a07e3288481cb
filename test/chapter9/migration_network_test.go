package chapter9

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// lanManifest is a network of the nodes' second cards, with addresses from one range for the whole cluster.
const lanManifest = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: {{.name}}}
spec:
  config: '{"cniVersion": "1.0.0", "name": "{{.name}}", "type": "macvlan", "master": "eth1", "mode": "bridge", "capabilities": {"mac": true},
    "ipam": {"type": "whereabouts", "range": "{{.range}}"}}'
`

// frontManifest is a pod whose first interface is on the network lan.
const frontManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: {{.name}}
  annotations: {v1.multus-cni.io/default-network: lan}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node-2}
  containers:
    - name: toolbox
      image: patchbay.io/guest/toolbox:latest
      imagePullPolicy: IfNotPresent
      command: [sleep, "86400"]
`

// movableOnLAN is movable with a second NIC on the network lan, and the eviction strategy written out.
var movableOnLAN = strings.NewReplacer(
	"            - {name: default, masquerade: {}, {{.interface}}}\n", "            - {name: default, masquerade: {}, {{.interface}}}\n            - {name: lan, bridge: {}}\n",
	"        - {name: default, pod: { {{.network}} }}\n", "        - {name: default, pod: { {{.network}} }}\n        - {name: lan, multus: {networkName: lan}}\n",
	"      terminationGracePeriodSeconds: 5\n", "      terminationGracePeriodSeconds: 5\n      evictionStrategy: LiveMigrate\n",
).Replace(movable)

// lanData configures both NICs of such a machine.
const lanData = "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n  eth1:\n    dhcp4: true\n"

var factoryRange = netip.MustParsePrefix("10.77.0.0/24")

// spanningNetworks makes the networks of the nodes' second cards; on tight there is room for two.
func spanningNetworks(t *testing.T, ns string) {
	t.Helper()
	for name, r := range map[string]string{"lan": factoryRange.String(), "tight": "10.78.0.1-10.78.0.2/24"} {
		cluster.Apply(t, ns, lanManifest, map[string]string{"name": name, "range": r})
	}
}

// addressOn is the pod's address on a device.
func (b toolbox) addressOn(device string) string {
	b.t.Helper()
	fields := strings.Fields(b.must("ip -4 -o addr show " + device))
	if len(fields) < 4 {
		b.t.Fatalf("pod %s has no address on %s: %v", b.name, device, fields)
	}
	address, _, _ := strings.Cut(fields[3], "/")
	return address
}

// spanningNodes: pods on two nodes get addresses of one range, and the network carries frames between the nodes.
func spanningNodes(t *testing.T, ns string) (one, two toolbox) {
	one, two = podOn(t, ns, "one", "node-1", "lan,tight"), podOn(t, ns, "two", "node-2", "lan,tight")
	t.Run("9.1-C6 other plugins attach pods, with addresses of a range that spans the nodes", func(t *testing.T) {
		for device, in := range map[string]string{"net1": "10.77.0.0/24", "net2": "10.78.0.0/24"} {
			a, b := one.addressOn(device), two.addressOn(device)
			for _, address := range []string{a, b} {
				if ip, err := netip.ParseAddr(address); err != nil || !netip.MustParsePrefix(in).Contains(ip) || a == b {
					t.Errorf("on %s the pods have %s and %s, want two of %s", device, a, b, in)
				}
			}
		}
		cluster.Apply(t, ns, selectingManifest, map[string]string{"name": "three", "node": "node-1", "networks": "tight"})
		cluster.Eventually(t, soon, "the pod without an address says so", func() error {
			events := get(t, "events", "-n", ns, "--field-selector", "involvedObject.name=three,reason=ErrorAllocatingPod", "-o", "jsonpath={.items[*].message}")
			if !strings.Contains(events, "Could not allocate IP in range: ip: 10.78.0.1 / - 10.78.0.2 / range: 10.78.0.0/24") {
				return fmt.Errorf("events: %q", events)
			}
			return nil
		})
		kubectl(t, "delete", "pod", "three", "-n", ns, "--wait=false")
	})
	t.Run("9.1-C6 another plugin makes a pod's first interface", func(t *testing.T) {
		cluster.Apply(t, ns, frontManifest, map[string]string{"name": "front"})
		ip := cluster.PodReady(t, ns, "front").Status.PodIP
		if address, err := netip.ParseAddr(ip); err != nil || !factoryRange.Contains(address) {
			t.Errorf("the pod's address is %s", ip)
		}
		cluster.Eventually(t, soon, "a pod of the network reaches it", func() error { return one.pings(ip) })
		if config := get(t, "nad", "default", "-n", "patchbay-system", "-o", "jsonpath={.spec.config}"); !strings.Contains(config, "ovn-k8s-cni-overlay") {
			t.Errorf("the cluster's default network is defined as %s", config)
		}
	})
	t.Run("9.8.1-C4 the nodes' cards are on one network", func(t *testing.T) {
		for device, other := range map[string]string{"net1": two.addressOn("net1"), "net2": two.addressOn("net2")} {
			cluster.Eventually(t, soon, "node-1 reaches node-2 over "+device, func() error { return one.pings(other) })
		}
	})
	return one, two
}

// member is what a node says of the network of migrations.
func member(t *testing.T, node string) (m hcov1beta1.MigrationMember) {
	t.Helper()
	n := &corev1.Node{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Name: node}, n); err != nil {
		t.Fatal(err)
	}
	if text := n.Annotations[hcov1beta1.MigrationNetworkAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// saysOfNetwork waits for a condition of the HyperConverged object; status "" means that it is not there.
func saysOfNetwork(t *testing.T, status, message string) {
	t.Helper()
	cluster.Eventually(t, soon, "the HyperConverged object says "+status+" "+message, func() error {
		h := &hcov1beta1.HyperConverged{}
		if err := json.Unmarshal([]byte(get(t, "hco", hcoName, "-n", productHome, "-o", "json")), h); err != nil {
			return err
		}
		c, degraded := meta.FindStatusCondition(h.Status.Conditions, "MigrationNetworkReady"), meta.IsStatusConditionTrue(h.Status.Conditions, "Degraded")
		switch {
		case c == nil && status == "":
		case c == nil || string(c.Status) != status || !strings.Contains(c.Message, message) || degraded != (status == "False"):
			return fmt.Errorf("condition %+v, degraded %t", c, degraded)
		}
		return nil
	})
}

const (
	productHome = "openshift-cnv"
	// documented is the attachment as published; what is wrong with the others is in their names.
	documented = `{"cniVersion": "0.3.1", "name": "migration-bridge", "type": "macvlan", "master": "eth1", "mode": "bridge",
		"ipam": {"type": "whereabouts", "range": "10.200.5.0/24"}}`
	migrationNAD = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: migration-net}
spec:
  config: '{{.config}}'
`
)

// migrateOverNetwork is 9.8: the machine mover migrates over the nodes' second cards, because its node is emptied.
func migrateOverNetwork(t *testing.T, ns string) {
	kubectl(t, "create", "namespace", productHome)
	t.Cleanup(func() {
		_, _ = cluster.Kubectl(context.Background(), "delete", "namespace", productHome, "--wait=false")
	})
	define := func(t *testing.T, config string) {
		t.Helper()
		cluster.Apply(t, productHome, migrationNAD, map[string]string{"config": config})
	}
	t.Run("9.8.1-C2 a cluster administrator does it", func(t *testing.T) {
		kubectl(t, "create", "rolebinding", "owner", "-n", productHome, "--clusterrole=admin", "--user=owner")
		for user, want := range map[string]string{"--as=owner": "no", "--as-group=system:masters --as=root": "yes"} {
			args := append([]string{"auth", "can-i", "update", "hyperconvergeds", "-n", productHome}, strings.Fields(user)...)
			if out, _ := cluster.Kubectl(t.Context(), args...); strings.TrimSpace(out) != want {
				t.Errorf("%v: %s, want %s", args, out, want)
			}
		}
	})
	t.Run("9.8.1-K1 editing the HyperConverged object names the network", func(t *testing.T) {
		cluster.Apply(t, productHome, hcoManifest, nil)
		editor := filepath.Join(t.TempDir(), "editor")
		script := "#!/bin/sh\nsed -i 's/^spec:.*/spec:\\n  liveMigrationConfig:\\n    network: migration-net\\n    progressTimeout: 150/' \"$1\"\n"
		if err := os.WriteFile(editor, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("KUBE_EDITOR", editor)
		if out := kubectl(t, "edit", "hyperconverged", hcoName, "-n", productHome); out != "hyperconverged.hco.kubevirt.io/kubevirt-hyperconverged edited" {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("9.8.1-C10 the attachment is looked for in the product's namespace, and nothing else is taken for it", func(t *testing.T) {
		cluster.Apply(t, ns, migrationNAD, map[string]string{"config": documented})
		saysOfNetwork(t, "False", "there is no NetworkAttachmentDefinition migration-net in namespace openshift-cnv; make it, or remove liveMigrationConfig.network")
		here := cluster.Running(t, ns, "mover").Status.NodeName
		if out, err := cluster.NewClient(t).Run(t.Context(), "", "virtctl", "migrate", "mover", "-n", ns); err != nil {
			t.Fatal(out, err)
		}
		m := migration(t, ns, "mover")
		if s := m.Status.MigrationState; m.Status.Phase != virtv1.MigrationFailed || s == nil || !strings.Contains(s.FailureReason, "there is no NetworkAttachmentDefinition migration-net") {
			t.Errorf("without the network the migration ends as %s: %+v", m.Status.Phase, s)
		}
		if node := cluster.Running(t, ns, "mover").Status.NodeName; node != here {
			t.Errorf("the guest went from %s to %s", here, node)
		}
	})
	t.Run("9.8.1-C3 a node without the card says so", func(t *testing.T) {
		define(t, strings.Replace(documented, "eth1", "eth7", 1))
		saysOfNetwork(t, "False", `this node has no interface "eth7", which the definition names as master`)
	})
	t.Run("9.8.1-C6 a range of the main network is refused", func(t *testing.T) {
		define(t, strings.Replace(documented, "10.200.5.0/24", "10.128.9.0/24", 1))
		saysOfNetwork(t, "False", "its range 10.128.9.0/24 overlaps 10.128.0.0/14, which the cluster's own network uses; choose another range")
	})
	t.Run("9.8.1-C5 a range that is too small says so", func(t *testing.T) {
		define(t, strings.Replace(documented, "10.200.5.0/24", "10.200.5.9-10.200.5.9/24", 1))
		saysOfNetwork(t, "False", "Could not allocate IP in range: ip: 10.200.5.9 / - 10.200.5.9 / range: 10.200.5.0/24")
	})
	t.Run("9.8.1-C7 the nodes join when it is right", func(t *testing.T) {
		define(t, documented)
		saysOfNetwork(t, "True", "migrations take the network migration-net; on it are node-1, node-2")
		one, two := member(t, "node-1"), member(t, "node-2")
		if one.Address == two.Address || !migrationRange.Contains(netip.MustParseAddr(one.Address)) || !migrationRange.Contains(netip.MustParseAddr(two.Address)) {
			t.Errorf("the nodes have %+v and %+v", one, two)
		}
	})
	source := cluster.Running(t, ns, "mover").Status.NodeName
	before := sent(t, source)
	t.Run("9.8.1-C8 a node that is emptied loses its guests to another", func(t *testing.T) { drain(t, ns) })
	after := sent(t, source)
	moved := cluster.Running(t, ns, "mover")
	t.Run("9.8.1-K2 the target's address is one of the range", func(t *testing.T) {
		out := get(t, "vmi", "mover", "-n", ns, "-o", "jsonpath={.status.migrationState.targetNodeAddress}")
		if ip, err := netip.ParseAddr(out); err != nil || !migrationRange.Contains(ip) {
			t.Errorf("printed %q", out)
		}
		cluster.Eventually(t, soon, "the target says that this is its address", func() error {
			if m := member(t, moved.Status.NodeName); m.Address != out {
				return fmt.Errorf("it says %+v, the target's address was %s", m, out)
			}
			return nil
		})
	})
	t.Run("9.8.1-C9 the migration used the network", func(t *testing.T) {
		if ms := moved.Status.MigrationState; ms.MigrationNetworkType != virtv1.Migration {
			t.Errorf("network type %q", ms.MigrationNetworkType)
		}
	})
	t.Run("9.8-C1 the nodes' own network carries no migration data", func(t *testing.T) {
		migration, main := after["eth1"]-before["eth1"], after["eth0"]-before["eth0"]
		t.Logf("bytes that the source sent: %d on the migration network, %d on the main one", migration, main)
		if migration < 8<<20 || main > migration/4 {
			t.Errorf("%s sent %d bytes on the migration network and %d on the main one", source, migration, main)
		}
	})
	t.Run("9.8.1-C12 the eviction strategy is LiveMigrate", func(t *testing.T) {
		if s := moved.Spec.EvictionStrategy; s == nil || *s != virtv1.EvictionStrategyLiveMigrate {
			t.Errorf("eviction strategy %v", s)
		}
	})
	t.Run("9.8.1-C1 without its name in the HyperConverged object the network is left", func(t *testing.T) {
		kubectl(t, "patch", "hco", hcoName, "-n", productHome, "--type=json", "-p", `[{"op":"remove","path":"/spec/liveMigrationConfig/network"}]`)
		saysOfNetwork(t, "", "")
		cluster.Eventually(t, soon, "the nodes give their addresses back", func() error {
			pools := get(t, "ippools", "-n", "patchbay-system", "-o", "json")
			if strings.Contains(pools, `"node//`) || member(t, "node-1").Network != "" || member(t, "node-2").Network != "" {
				return fmt.Errorf("pools %s, nodes say %+v, %+v", pools, member(t, "node-1"), member(t, "node-2"))
			}
			return nil
		})
	})
}

var migrationRange = netip.MustParsePrefix("10.200.5.0/24")

// sent is how many bytes each of a node's cards has sent.
func sent(t *testing.T, node string) map[string]int {
	t.Helper()
	bytes := map[string]int{}
	for line := range strings.Lines(inNode(t, node, "cat", "/proc/net/dev")) {
		device, counters, ok := strings.Cut(line, ":")
		if fields := strings.Fields(counters); ok && len(fields) > 8 {
			bytes[strings.TrimSpace(device)], _ = strconv.Atoi(fields[8])
		}
	}
	return bytes
}
