package chapter9

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// bridgePolicy makes a bridge over the nodes' second card.
const bridgePolicy = `
apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata: {name: {{.name}}}
spec:
  maxUnavailable: {{.limit}}
  nodeSelector: { {{.selector}} }
  desiredState:
    interfaces:
    - name: {{.bridge}}
      type: linux-bridge
      state: {{.state}}
      ipv4: {enabled: {{.enabled}}, address: [ {{.address}} ]}
      bridge:
        options: {stp: {enabled: false}}
        port: [{name: {{.port}}}]
`

// policy is a bridgePolicy; empty fields take what most tests want.
func policy(t *testing.T, values map[string]string) {
	t.Helper()
	all := map[string]string{"name": "nodebr", "limit": "100%", "selector": "", "bridge": "nodebr", "state": "up", "enabled": "false", "address": "", "port": "eth1"}
	for key, value := range values {
		all[key] = value
	}
	cluster.Apply(t, "default", bridgePolicy, all)
}

// becomes waits until a condition of a policy is true.
func becomes(t *testing.T, name, condition string) {
	t.Helper()
	if out, err := cluster.Kubectl(t.Context(), "wait", "nncp", name, "--for", "condition="+condition, "--timeout", boot.String()); err != nil {
		state, _ := cluster.Kubectl(t.Context(), "get", "nncp,nnce", "-o", "yaml")
		t.Fatalf("policy %s does not become %s: %v %s\n%s", name, condition, err, out, state)
	}
}

func get(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), append([]string{"get"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func inNode(t *testing.T, node string, command ...string) string {
	t.Helper()
	out, err := cluster.InNode(t.Context(), node, command...)
	if err != nil {
		t.Fatalf("%s: %v: %v %s", node, command, err, out)
	}
	return strings.TrimSpace(out)
}

// 9.1.1: node network policies.
func TestNodeNetworkPolicies(t *testing.T) {
	t.Cleanup(func() {
		for _, name := range []string{"nodebr", "bad", "mapping"} {
			_, _ = cluster.Kubectl(context.Background(), "delete", "nncp", name, "--ignore-not-found")
		}
	})
	t.Run("9.1.1-C4 applying a manifest adds an interface to every node", func(t *testing.T) {
		policy(t, nil)
		becomes(t, "nodebr", "Available")
		for _, node := range cluster.Nodes {
			if got := inNode(t, node, "ip", "-br", "link", "show", "master", "nodebr"); !strings.Contains(got, "eth1") {
				t.Errorf("ports of the bridge on %s: %q", node, got)
			}
		}
		if got := get(t, "nncp", "nodebr", "-o", `jsonpath={.status.conditions[?(@.type=="Available")].message}`); got != "2/2 nodes successfully configured" {
			t.Errorf("the policy says %q", got)
		}
	})
	t.Run("9.1.1-C4 editing the manifest changes it, and nodes reach each other over it", func(t *testing.T) {
		for n, node := range cluster.Nodes {
			policy(t, map[string]string{
				"name": "nodebr", "selector": "kubernetes.io/hostname: " + node, "enabled": "true",
				"address": fmt.Sprintf("{ip: 192.0.2.%d, prefix-length: 24}", n+1),
			})
			becomes(t, "nodebr", "Available")
		}
		inNode(t, "node-1", "ping", "-c1", "-W5", "192.0.2.2")
		if got := get(t, "nnce", "-o", "name"); !strings.HasSuffix(got, "/node-2.nodebr") || strings.Contains(got, "node-1") {
			t.Errorf("a node that is no longer selected keeps its enactment: %s", got)
		}
	})
	t.Run("9.1.1-C4 kinds, short names and columns", func(t *testing.T) {
		for kind, want := range map[string]string{"nncp": "NAME STATUS REASON", "nnce": "NAME STATUS STATUS AGE REASON", "nns": "NAME AGE"} {
			header, _, _ := strings.Cut(get(t, kind), "\n")
			if got := strings.Join(strings.Fields(header), " "); got != want {
				t.Errorf("kubectl get %s prints the columns %q, want %q", kind, got, want)
			}
		}
	})
	t.Run("9.1.1-C4 the state of a node is reported", func(t *testing.T) {
		cluster.Eventually(t, soon, "the report of node-2", func() error {
			got := get(t, "nns", "node-2", "-o", `jsonpath={.status.currentState.interfaces[?(@.name=="nodebr")].ipv4.address[0].ip}`)
			if got != "192.0.2.2" {
				return fmt.Errorf("the bridge has %q", got)
			}
			return nil
		})
	})
	t.Run("9.1.1-C4 bridge mappings are merged", func(t *testing.T) {
		cluster.Apply(t, "default", `
apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata: {name: mapping}
spec:
  maxUnavailable: 100%
  desiredState:
    ovn: {bridge-mappings: [{localnet: tenantblue, bridge: br-phys, state: present}]}
`, nil)
		becomes(t, "mapping", "Available")
		if got := get(t, "nns", "node-1", "-o", "name"); got == "" {
			t.Error("node-1 reports nothing")
		}
		cluster.Eventually(t, soon, "the mapping in the report", func() error {
			if got := get(t, "nns", "node-1", "-o", "jsonpath={.status.currentState.ovn.bridge-mappings}"); !strings.Contains(got, "tenantblue") {
				return fmt.Errorf("mappings %s", got)
			}
			return nil
		})
	})
	t.Run("9.1.1-C4 a bad policy stops at the first node", func(t *testing.T) {
		cluster.Apply(t, "default", `
apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata: {name: bad}
spec:
  maxUnavailable: 1
  desiredState:
    interfaces: [{name: eth0, type: ethernet, state: up, mtu: 70000}]
`, nil)
		becomes(t, "bad", "Degraded")
		if got := get(t, "nncp", "bad", "-o", `jsonpath={.status.conditions[?(@.type=="Degraded")].message}`); got != "1/2 nodes failed to configure, 1 nodes aborted configuration" {
			t.Errorf("the policy says %q", got)
		}
	})
	t.Run("9.1.1-C4 a deleted policy leaves the network, state absent removes the interface", func(t *testing.T) {
		if out, err := cluster.Kubectl(t.Context(), "delete", "nncp", "nodebr"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		cluster.Eventually(t, soon, "no enactment of a deleted policy", func() error {
			if got := get(t, "nnce", "-l", "nmstate.io/policy=nodebr", "-o", "name"); got != "" {
				return fmt.Errorf("there is %s", got)
			}
			return nil
		})
		inNode(t, "node-1", "ip", "link", "show", "nodebr")
		policy(t, map[string]string{"state": "absent"})
		becomes(t, "nodebr", "Available")
		for _, node := range cluster.Nodes {
			if out, err := cluster.InNode(t.Context(), node, "ip", "link", "show", "nodebr"); err == nil {
				t.Errorf("the bridge is still on %s: %s", node, out)
			}
		}
	})
}
