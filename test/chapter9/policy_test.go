package chapter9

import (
	"fmt"
	"slices"
	"testing"

	"patchbay/test/local"
)

const policyManifest = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: {{.name}}}
spec: {{.spec}}
`

// policed applies a policy for the rest of a test; the function takes it away.
func policed(t *testing.T, ns, name, spec string) (end func()) {
	t.Helper()
	cluster.Apply(t, ns, policyManifest, map[string]string{"name": name, "spec": spec})
	return func() {
		t.Helper()
		if out, err := cluster.Kubectl(t.Context(), "delete", "networkpolicy", name, "-n", ns); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
}

// becomes waits until a connection ends as wanted: a policy takes effect a moment after it is applied.
func (b toolbox) becomes(ip string, port int, want reach) {
	b.t.Helper()
	cluster.Eventually(b.t, soon, fmt.Sprintf("port %d of %s from pod %s is %s", port, ip, b.name, want), func() error {
		if got := b.connect(ip, port); got != want {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// testPolicy speaks of a machine behind masquerade on node-1 and of a pod on node-2. The machine listens on ports 7, 22 and 80.
func testPolicy(t *testing.T, ns string, box toolbox, guest *local.Guest, ips []string) {
	t.Run("9.1-C5 network policies hold for machines on the pod network", func(t *testing.T) {
		end := policed(t, ns, "ssh-only", `{podSelector: {matchLabels: {app: open}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 22}]}],
  egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]}`)
		box.becomes(ipv4(ips), 80, silent)
		box.expect(ipv6(ips), 80, silent)
		for _, ip := range ips {
			box.expect(ip, 22, answered)
		}
		if out, err := guest.Try("ping -c1 -W2 " + ipv4(box.ips)); err == nil {
			t.Errorf("the machine reaches a pod that its policy does not name: %s", out)
		}
		guest.Eventually(cluster, soon, "nslookup kubernetes.default.svc.cluster.local", contains("10.96.0.1"))
		end()
		box.becomes(ipv4(ips), 80, answered)
	})
}

// testTenantPolicy speaks of a machine that takes its port itself on node-1, and of a pod on node-2.
func testTenantPolicy(t *testing.T, user *local.Client, ns, key string, guest *local.Guest, box toolbox, one, two []string) {
	t.Run("9.1-C5 network policies hold for machines on a primary network", func(t *testing.T) {
		end := policed(t, ns, "closed", "{podSelector: {matchLabels: {vm.kubevirt.io/name: one}}, policyTypes: [Ingress, Egress]}")
		box.becomes(one[0], 22, silent)
		box.expect(one[1], 22, silent)
		if out, err := guest.Try("ping -c1 -W2 " + two[0]); err == nil {
			t.Errorf("a closed machine reaches another: %s", out)
		}
		// Its own node reaches it: the tunnels of the API, and the kubelet.
		if out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vmi/one", "hostname"); err != nil || out != "one" {
			t.Errorf("ssh through the API: %q, %v", out, err)
		}
		policed(t, ns, "closed", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: box}}}]}]}")
		box.becomes(one[0], 22, answered)
		for _, ip := range slices.Concat(one, two) {
			box.expect(ip, 22, answered)
		}
		if out, err := guest.Try("ping -c1 -W2 " + two[0]); err == nil {
			t.Errorf("a machine reaches another that lets in the pod only: %s", out)
		}
		end()
		answersFrom(t, guest, "machine one", two[0])
	})
}

const multiPolicyManifest = `
apiVersion: k8s.cni.cncf.io/v1beta1
kind: MultiNetworkPolicy
metadata:
  name: {{.name}}
  annotations: {k8s.v1.cni.cncf.io/policy-for: "{{.for}}"}
spec:
  podSelector: {matchLabels: {app: {{.app}}}}
  policyTypes: [Ingress]
  ingress: [{from: [{{.peer}}]}]
`

// testMultiPolicy speaks of machine app-01 (192.168.100.1) of a network without addresses, of app-02 (.2) in another namespace, and
// of a pod (.4).
func testMultiPolicy(t *testing.T, ns string, second *local.Guest, peer toolbox) {
	values := func(peer string) map[string]string {
		return map[string]string{"name": "app-01", "for": "blue-l2", "app": "app-01", "peer": peer}
	}
	t.Run("9.5-C3 selectors are refused on a network that knows no addresses", func(t *testing.T) {
		for _, by := range []string{"{podSelector: {}}", "{namespaceSelector: {}}"} {
			refusedWith(t, ns, multiPolicyManifest, values(by), "peers there can be given by ipBlock only; write the peers as ipBlock, or give the network subnets")
		}
	})
	t.Run("9.5-C3 a MultiNetworkPolicy with ipBlock holds", func(t *testing.T) {
		cluster.Apply(t, ns, multiPolicyManifest, values("{ipBlock: {cidr: 192.168.100.0/24, except: [192.168.100.4/32]}}"))
		peer.becomes("192.168.100.1", 22, silent)
		second.Run("ping -c1 -W3 192.168.100.1")
		if out, err := cluster.Kubectl(t.Context(), "delete", "multi-networkpolicies", "app-01", "-n", ns); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		peer.becomes("192.168.100.1", 22, answered)
	})
}

// testSelectingMultiPolicy speaks of a machine and a pod on the network addressed, which has subnets.
func testSelectingMultiPolicy(t *testing.T, ns string, peer toolbox, name string) {
	t.Run("9.5-C3 selectors hold where the network gives the addresses", func(t *testing.T) {
		machine := ""
		for _, i := range cluster.Running(t, ns, name).Status.Interfaces {
			if i.Name == "addressed" {
				machine = i.IP
			}
		}
		policy := func(by string) {
			cluster.Apply(t, ns, multiPolicyManifest, map[string]string{"name": name, "for": "addressed", "app": name, "peer": by})
		}
		policy("{podSelector: {matchLabels: {app: nobody}}}")
		peer.becomes(machine, 22, silent)
		policy("{podSelector: {matchLabels: {app: peer}}}")
		peer.becomes(machine, 22, answered)
	})
}
