package chapter9

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/test/local"
)

const tenantService = `
apiVersion: v1
kind: Service
metadata: {name: {{.name}}}
spec:
  selector: { {{.selects}} }
  ipFamilyPolicy: PreferDualStack
  {{.spec}}
  ports: [{name: http, port: 80}]
`

// nodeAddresses are the nodes' addresses towards the fabric.
var nodeAddresses = map[string][]string{"node-1": {"172.30.0.11", "fd00:172:30::b"}, "node-2": {"172.30.0.12", "fd00:172:30::c"}}

// testTenantServices checks Services in front of machines on a primary network, one on each node.
func testTenantServices(t *testing.T, ns string, first *local.Guest, box toolbox) {
	expose := func(name, selects, spec string) *corev1.Service {
		cluster.Apply(t, ns, tenantService, map[string]string{"name": name, "selects": selects, "spec": spec})
		s := &corev1.Service{}
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	both, second := "kubevirt.io: virt-launcher", "vm.kubevirt.io/name: two"
	shop := expose("shop", both, "type: LoadBalancer")

	t.Run("9.4.1-C4 a node port leads to machines of a primary network from every node", func(t *testing.T) {
		for _, node := range []string{"node-1", "node-2"} {
			for _, ip := range nodeAddresses[node] {
				answered := map[string]bool{}
				cluster.Eventually(t, soon, "both machines answer at "+ip, func() error {
					name, err := outside(t, ip, shop.Spec.Ports[0].NodePort)
					if answered[name] = true; !answered["one"] || !answered["two"] {
						return fmt.Errorf("answered: %v (%v)", answered, err)
					}
					return nil
				})
			}
		}
	})
	t.Run("9.4.1-C5 an external address leads to machines of a primary network", func(t *testing.T) {
		shop.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "172.30.0.201"}}
		if err := cluster.Client.Status().Update(t.Context(), shop); err != nil {
			t.Fatal(err)
		}
		elsewhere := pod(t, cluster.Namespace(t), "stranger", "node-1")
		for what, from := range map[string]toolbox{"a pod of the network": box, "a pod of the default network": elsewhere} {
			cluster.Eventually(t, soon, what+" reaches the address", func() error {
				_, err := from.run("curl -sfm3 http://172.30.0.201/hostname")
				return err
			})
		}
		// The cluster IP is the network's own.
		if out, err := elsewhere.run("curl -sSm3 http://" + shop.Spec.ClusterIP + "/hostname"); err == nil {
			t.Errorf("a pod of the default network got %q from the cluster IP", out)
		}
	})
	t.Run("9.4.1-C6 externalTrafficPolicy Local on a primary network", func(t *testing.T) {
		local := expose("here", second, "type: NodePort\n  externalTrafficPolicy: Local")
		for _, ip := range nodeAddresses["node-2"] {
			cluster.Eventually(t, soon, "the machine answers at its node "+ip, func() error {
				_, err := outside(t, ip, local.Spec.Ports[0].NodePort)
				return err
			})
		}
		for _, ip := range nodeAddresses["node-1"] {
			if name, err := outside(t, ip, local.Spec.Ports[0].NodePort); err == nil {
				t.Errorf("a node without an endpoint let %s answer at %s", name, ip)
			}
		}
	})
	t.Run("9.4.1-C1 internalTrafficPolicy Local on a layer2 network means every machine", func(t *testing.T) {
		inside := expose("inside", second, "internalTrafficPolicy: Local")
		for _, ip := range inside.Spec.ClusterIPs {
			first.Eventually(cluster, soon, "printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | nc -w 3 "+ip+" 80", contains("two"))
		}
	})
}

// outside asks a node port from a host that is not in the cluster.
func outside(t *testing.T, ip string, port int32) (string, error) {
	t.Helper()
	name, err := cluster.InNode(t.Context(), "fabric", "curl", "-sS", "-f", "-m", "3", "--noproxy", "*", fmt.Sprintf("http://%s:%d/hostname", bracket(ip), port))
	return strings.TrimSpace(name), err
}
