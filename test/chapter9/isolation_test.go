package chapter9

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// sameRangesManifest is a primary network with the same ranges for everybody, and a web server on each node behind a Service.
const sameRangesManifest = `
apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: net}
spec:
  topology: Layer2
  layer2: {role: Primary, subnets: ["10.20.0.0/16", "fd00:20::/64"]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {web: "yes"}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

const webManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: {{.name}}
  labels: {web: "yes"}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: {{.node}}}
  containers:
    - name: toolbox
      image: patchbay.io/guest/toolbox:latest
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "while true; do echo {{.greeting}} | nc -l -p 8080 -w 1 >/dev/null 2>&1; done"]
`

// tenant is a namespace with a primary network of its own and two toolboxes on it.
type tenant struct {
	namespace string
	boxes     []toolbox // on node-1 and node-2; their addresses are those of the network
}

func newTenant(t *testing.T) tenant {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-", Labels: map[string]string{"k8s.ovn.org/primary-user-defined-network": ""}}}
	if err := cluster.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			cluster.Describe(context.Background(), t, ns.Name)
		}
		if _, err := cluster.Kubectl(context.Background(), "delete", "namespace", ns.Name, "--timeout=2m"); err != nil {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	out := tenant{namespace: ns.Name}
	cluster.Apply(t, ns.Name, sameRangesManifest, nil)
	for _, node := range []string{"node-1", "node-2"} {
		box := pod(t, ns.Name, "box-"+node, node)
		box.ips = primaryIPs(t, cluster.PodReady(t, ns.Name, box.name))
		out.boxes = append(out.boxes, box)
	}
	return out
}

// primaryIPs are a pod's addresses on its primary network, which its status does not say.
func primaryIPs(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	var networks map[string]struct {
		IPs  []netip.Prefix `json:"ip_addresses"`
		Role string         `json:"role"`
	}
	if err := json.Unmarshal([]byte(pod.Annotations["k8s.ovn.org/pod-networks"]), &networks); err != nil {
		t.Fatal(err)
	}
	var out []string
	for key, network := range networks {
		if key != "default" && network.Role == "primary" {
			for _, ip := range network.IPs {
				out = append(out, ip.Addr().String())
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("pod %s has no primary network: %s", pod.Name, pod.Annotations["k8s.ovn.org/pod-networks"])
	}
	return out
}

// hears tells whether an address answers.
func (b toolbox) hears(ip string) bool {
	_, err := b.run("ping -c3 -i0.3 -W2 " + ip)
	return err == nil
}

// 9.1: what a primary network keeps apart, and what it does not.
func TestPrimaryNetworkIsolation(t *testing.T) {
	red, blue := newTenant(t), newTenant(t)
	plain := cluster.Namespace(t)
	box := pod(t, plain, "plain", "node-1")

	t.Run("9.1.1-C1 a namespace with a network of its own", func(t *testing.T) {
		for _, of := range []tenant{red, blue} {
			for _, ip := range of.boxes[1].ips {
				if !of.boxes[0].hears(ip) {
					t.Errorf("%s does not reach its neighbour at %s", of.namespace, ip)
				}
				if box.hears(ip) {
					t.Errorf("the default network reaches %s at %s", of.namespace, ip)
				}
			}
		}
	})
	t.Run("9.1.3-C2 apart without a policy", func(t *testing.T) {
		legs := map[string][]string{}
		for _, of := range []tenant{red, blue} {
			for _, ip := range cluster.PodReady(t, of.namespace, of.boxes[0].name).Status.PodIPs {
				legs[of.namespace] = append(legs[of.namespace], ip.IP)
			}
		}
		for _, ip := range append(legs[red.namespace], legs[blue.namespace]...) {
			if box.hears(ip) {
				t.Errorf("the default network reaches a tenant's pod at %s", ip)
			}
		}
		for _, from := range red.boxes {
			for _, ip := range append(legs[blue.namespace], box.ips...) {
				if from.hears(ip) {
					t.Errorf("%s reaches %s", from.name, ip)
				}
			}
		}
	})
	t.Run("9.1.3-C1 instead of the default network", func(t *testing.T) {
		for _, from := range red.boxes {
			for _, outside := range []string{"172.30.0.1", "fd00:172:30::1"} {
				if !from.hears(outside) {
					t.Errorf("%s does not reach the outside at %s", from.name, outside)
				}
			}
			if got := from.connect("10.96.0.1", 443); got != answered {
				t.Errorf("%s to the API server: %s", from.name, got)
			}
			if out, err := from.run("nslookup web." + red.namespace + ".svc.cluster.local"); err != nil {
				t.Errorf("%s asks the cluster's DNS: %v: %s", from.name, err, out)
			}
		}
	})
	testTenantService(t, red, blue, box)
}

func testTenantService(t *testing.T, red, blue tenant, box toolbox) {
	for _, node := range []string{"node-1", "node-2"} {
		cluster.Apply(t, red.namespace, webManifest, map[string]string{"name": "web-" + node, "node": node, "greeting": "red"})
		cluster.PodReady(t, red.namespace, "web-"+node)
	}
	var service corev1.Service
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: red.namespace, Name: "web"}, &service); err != nil {
		t.Fatal(err)
	}
	ask := func(from toolbox, ip string, port int32) string {
		out, err := from.run(fmt.Sprintf("nc -w 3 %s %d </dev/null 2>&1", ip, port))
		if err != nil && out == "" {
			return err.Error()
		}
		return out
	}
	t.Run("9.1.3-C1 services of the network", func(t *testing.T) {
		for _, ip := range service.Spec.ClusterIPs {
			for _, from := range red.boxes {
				cluster.Eventually(t, soon, from.name+" is answered at "+ip, func() error {
					if got := ask(from, ip, 80); got != "red" {
						return fmt.Errorf("it got %q", got)
					}
					return nil
				})
			}
			for _, from := range append(blue.boxes, box) {
				if got := ask(from, ip, 80); !strings.Contains(got, "refused") {
					t.Errorf("%s of %s asked red's service at %s and got %q, want refused", from.name, from.namespace, ip, got)
				}
			}
		}
	})
	t.Run("9.1.3-C2 node ports are open to all", func(t *testing.T) {
		for _, node := range []string{"172.30.0.11", "172.30.0.12"} {
			for _, from := range append(blue.boxes, box, red.boxes[1]) {
				cluster.Eventually(t, soon, from.name+" is answered at the node port of "+node, func() error {
					if got := ask(from, node, service.Spec.Ports[0].NodePort); got != "red" {
						return fmt.Errorf("it got %q", got)
					}
					return nil
				})
			}
		}
	})
}
