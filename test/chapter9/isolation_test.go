package chapter9

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// isolationManifest is a primary network with the same ranges for everybody, and a web server on each node behind a Service.
const isolationManifest = `
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

const isolationWebManifest = `
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

// isolated is a namespace with a primary network of its own and two toolboxes on it.
type isolated struct {
	namespace string
	boxes     []toolbox // on node-1 and node-2; their addresses are those of the network
}

func newIsolated(t *testing.T) isolated {
	t.Helper()
	out := isolated{namespace: tenantNamespace(t)}
	cluster.Apply(t, out.namespace, isolationManifest, nil)
	for _, node := range []string{"node-1", "node-2"} {
		box := pod(t, out.namespace, "box-"+node, node)
		box.ips = isolatedIPs(t, cluster.PodReady(t, out.namespace, box.name))
		out.boxes = append(out.boxes, box)
	}
	return out
}

// isolatedIPs are a pod's addresses on its primary network, which its status does not say.
func isolatedIPs(t *testing.T, pod *corev1.Pod) []string {
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

// reached returns those of some addresses that answer. All are asked at once: most tests expect silence, which takes a while.
func (b toolbox) reached(ips ...string) []string {
	b.t.Helper()
	script := ""
	for _, ip := range ips {
		script += "(ping -c3 -i0.3 -W2 " + ip + " >/dev/null 2>&1 && echo " + ip + ") & "
	}
	return strings.Fields(b.must(script + "wait"))
}

// 9.1: what a primary network keeps apart, and what it does not.
func TestPrimaryNetworkIsolation(t *testing.T) {
	red, blue := newIsolated(t), newIsolated(t)
	plain := cluster.Namespace(t)
	box := pod(t, plain, "plain", "node-1")

	t.Run("9.1.1-C1 a namespace with a network of its own", func(t *testing.T) {
		for _, of := range []isolated{red, blue} {
			if got := of.boxes[0].reached(of.boxes[1].ips...); len(got) != len(of.boxes[1].ips) {
				t.Errorf("%s reaches its neighbour at %v of %v", of.namespace, got, of.boxes[1].ips)
			}
			if got := box.reached(of.boxes[1].ips...); len(got) > 0 {
				t.Errorf("the default network reaches %s at %v", of.namespace, got)
			}
		}
	})
	t.Run("9.1.3-C2 apart without a policy", func(t *testing.T) {
		legs := map[string][]string{}
		for _, of := range []isolated{red, blue} {
			for _, ip := range cluster.PodReady(t, of.namespace, of.boxes[0].name).Status.PodIPs {
				legs[of.namespace] = append(legs[of.namespace], ip.IP)
			}
		}
		if got := box.reached(slices.Concat(legs[red.namespace], legs[blue.namespace])...); len(got) > 0 {
			t.Errorf("the default network reaches a tenant's pod at %v", got)
		}
		for _, from := range red.boxes {
			if got := from.reached(slices.Concat(legs[blue.namespace], box.ips)...); len(got) > 0 {
				t.Errorf("%s reaches %v", from.name, got)
			}
		}
	})
	t.Run("9.1.3-C1 instead of the default network", func(t *testing.T) {
		for _, from := range red.boxes {
			if got := from.reached("172.30.0.1", "fd00:172:30::1"); len(got) != 2 {
				t.Errorf("%s reaches only %v of the outside", from.name, got)
			}
			if got := from.connect("10.96.0.1", 443); got != answered {
				t.Errorf("%s to the API server: %s", from.name, got)
			}
			if out, err := from.run("nslookup web." + red.namespace + ".svc.cluster.local"); err != nil {
				t.Errorf("%s asks the cluster's DNS: %v: %s", from.name, err, out)
			}
		}
	})
	testIsolatedService(t, red, blue, box)
}

func testIsolatedService(t *testing.T, red, blue isolated, box toolbox) {
	for _, node := range []string{"node-1", "node-2"} {
		cluster.Apply(t, red.namespace, isolationWebManifest, map[string]string{"name": "web-" + node, "node": node, "greeting": "red"})
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
