package chapter9

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const serviceManifest = `
apiVersion: v1
kind: Service
metadata: {name: {{.name}}}
spec:
  selector: {special: {{.selector}}}
  {{.spec}}
  ports:
    - {name: http, protocol: TCP, port: 80, targetPort: 80}
`

func service(t *testing.T, ns, name, selector, spec string) *corev1.Service {
	t.Helper()
	cluster.Apply(t, ns, serviceManifest, map[string]string{"name": name, "selector": selector, "spec": spec})
	out := &corev1.Service{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// answers asks a web server n times and counts who answered.
func (b toolbox) answers(t *testing.T, url string, n int) map[string]int {
	t.Helper()
	out, err := b.run(fmt.Sprintf("for n in $(seq %d); do curl -sfm5 %s/hostname; echo; done", n, url))
	if err != nil {
		t.Fatalf("ask %s: %v", url, err)
	}
	count := map[string]int{}
	for _, name := range strings.Fields(out) {
		count[name]++
	}
	return count
}

// 9.4: Services in front of VMs on the pod network.
func TestServices(t *testing.T) {
	ns := cluster.Namespace(t)
	machine{name: "web-01", node: "node-1", labels: "special: key"}.apply(t, ns)
	machine{name: "web-02", node: "node-2", labels: "special: key"}.apply(t, ns)
	box := pod(t, ns, "client", "node-2")
	for _, name := range []string{"web-01", "web-02"} {
		vmi := cluster.Running(t, ns, name)
		waitForWeb(t, box, vmi.Status.Interfaces[0].IP)
	}
	plain := service(t, ns, "plain", "key", "")
	cluster.Eventually(t, soon, "Service plain answers", func() error {
		_, err := box.run("curl -sfm2 http://plain/hostname")
		return err
	})

	t.Run("9.4.1-C1 a cluster IP and a DNS name", func(t *testing.T) {
		for _, host := range []string{plain.Spec.ClusterIP, "plain", "plain." + ns + ".svc.cluster.local"} {
			if _, err := box.run("curl -sfm5 http://" + host + "/hostname"); err != nil {
				t.Errorf("http://%s: %v", host, err)
			}
		}
	})
	t.Run("9.4.1-C2 requests are balanced over VMs", func(t *testing.T) {
		count := box.answers(t, "http://"+plain.Spec.ClusterIP, 40)
		if count["web-01"] < 5 || count["web-02"] < 5 || count["web-01"]+count["web-02"] != 40 {
			t.Errorf("answers %v", count)
		}
	})
	t.Run("9.4.1-C3 ClusterIP is the default", func(t *testing.T) {
		if plain.Spec.Type != corev1.ServiceTypeClusterIP {
			t.Errorf("type %s", plain.Spec.Type)
		}
	})
	t.Run("9.1.2-C3 a Service exposes a VM inside and outside", func(t *testing.T) { nodePort(t, ns, box) })
	t.Run("9.4.1-C4 NodePort opens the port on each node", func(t *testing.T) { nodePort(t, ns, box) })
	t.Run("9.4.1-C5 an external IP reaches the VM", func(t *testing.T) {
		external := service(t, ns, "external", "key", "type: LoadBalancer")
		external.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "172.30.0.200"}}
		if err := cluster.Client.Status().Update(t.Context(), external); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, soon, "the external IP answers in the cluster", func() error {
			_, err := box.run("curl -sfm2 http://172.30.0.200/hostname")
			return err
		})
	})
	t.Run("9.4.1-C6 LoadBalancer with Local is warned about", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "create", "service", "loadbalancer", "warned", "-n", ns, "--tcp=80:80", "--dry-run=client", "-o", "yaml")
		if err != nil {
			t.Fatal(err)
		}
		warning := applyWarning(t, ns, strings.Replace(out, "type: LoadBalancer", "type: LoadBalancer\n  externalTrafficPolicy: Local", 1))
		if !strings.Contains(warning, "live-migrates") {
			t.Errorf("the warning %q does not name live migration", warning)
		}
	})
	t.Run("9.4.2-C1 dual stack works", func(t *testing.T) {
		dual := service(t, ns, "dual", "key", "ipFamilyPolicy: PreferDualStack")
		for _, ip := range dual.Spec.ClusterIPs {
			cluster.Eventually(t, soon, ip+" answers", func() error {
				_, err := box.run("curl -sfm2 http://" + bracket(ip) + "/hostname")
				return err
			})
		}
	})
	t.Run("9.4.2-C2 SingleStack takes the first range", func(t *testing.T) {
		single := service(t, ns, "single", "key", "ipFamilyPolicy: SingleStack")
		if got := families(single); got != "4" {
			t.Errorf("cluster IPs %v", single.Spec.ClusterIPs)
		}
	})
	t.Run("9.4.2-C3 PreferDualStack takes both", func(t *testing.T) {
		if got := families(service(t, ns, "prefer", "key", "ipFamilyPolicy: PreferDualStack")); got != "46" {
			t.Errorf("families %s", got)
		}
	})
	t.Run("9.4.2-C4 RequireDualStack takes both", func(t *testing.T) {
		if got := families(service(t, ns, "require", "key", "ipFamilyPolicy: RequireDualStack")); got != "46" {
			t.Errorf("families %s", got)
		}
	})
	for order, want := range map[string]string{"[IPv4]": "4", "[IPv6]": "6", "[IPv4, IPv6]": "46", "[IPv6, IPv4]": "64"} {
		t.Run("9.4.2-C5 ipFamilies "+order, func(t *testing.T) {
			policy := "SingleStack"
			if len(want) == 2 {
				policy = "RequireDualStack"
			}
			name := "order" + want
			if got := families(service(t, ns, name, "key", fmt.Sprintf("ipFamilyPolicy: %s\n  ipFamilies: %s", policy, order))); got != want {
				t.Errorf("families %s, want %s", got, want)
			}
		})
	}
}

// nodePort reaches a NodePort Service on both nodes from a host outside the cluster: the fabric.
func nodePort(t *testing.T, ns string, box toolbox) {
	t.Helper()
	svc := service(t, ns, "outside", "key", "type: NodePort\n  ipFamilyPolicy: PreferDualStack")
	port := svc.Spec.Ports[0].NodePort
	for _, node := range []string{"172.30.0.11", "172.30.0.12", "fd00:172:30::b", "fd00:172:30::c"} {
		url := fmt.Sprintf("http://%s:%d/hostname", bracket(node), port)
		cluster.Eventually(t, soon, url+" answers outside the cluster", func() error {
			_, err := cluster.InNode(t.Context(), "fabric", "curl", "-sS", "-m", "3", "--noproxy", "*", url)
			return err
		})
	}
}

func applyWarning(t *testing.T, ns, manifest string) string {
	t.Helper()
	_, stderr, err := cluster.ApplyVerbose(t.Context(), ns, manifest)
	if err != nil {
		t.Fatal(err)
	}
	return stderr
}

func families(svc *corev1.Service) string {
	var out strings.Builder
	for _, ip := range svc.Spec.ClusterIPs {
		if netip.MustParseAddr(ip).Is4() {
			out.WriteString("4")
		} else {
			out.WriteString("6")
		}
	}
	return out.String()
}

// 9.4.3: creating a Service, with the manifests of the command line procedure.
func TestCreateService(t *testing.T) {
	ns := cluster.Namespace(t)
	machine{name: "web-01"}.apply(t, ns)
	box := pod(t, ns, "client", "node-2")
	vmi := cluster.Running(t, ns, "web-01")
	waitForWeb(t, box, vmi.Status.Interfaces[0].IP)
	endpoints := func() string {
		out, err := cluster.Kubectl(t.Context(), "get", "endpointslices", "-n", ns, "-l", "kubernetes.io/service-name=web-01-svc",
			"-o", "jsonpath={.items[*].endpoints[*].addresses[*]}")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	t.Run("9.4.3-K1 create says what it made", func(t *testing.T) {
		if out := cluster.Apply(t, ns, nodePortManifest, nil); !strings.HasPrefix(out, "service/web-01-svc ") {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("9.4.3-K2 get shows the ports", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "service", "-n", ns)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if got := strings.Join(strings.Fields(lines[0]), " "); got != "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE" {
			t.Errorf("columns %q", got)
		}
		row := strings.Fields(lines[len(lines)-1])
		if row[0] != "web-01-svc" || row[1] != "NodePort" || row[3] != "<none>" || row[4] != "80:30376/TCP" {
			t.Errorf("row %q", row)
		}
	})
	t.Run("9.4.3-C1 a label of the VM itself selects nothing", func(t *testing.T) {
		kubectl(t, "label", "vm", "web-01", "-n", ns, "special=key")
		cluster.Eventually(t, soon, "the label is on the VM", func() error {
			_, err := cluster.Kubectl(t.Context(), "get", "vm", "web-01", "-n", ns, "-o", "jsonpath={.metadata.labels.special}")
			return err
		})
		if pods := kubectl(t, "get", "pods", "-n", ns, "-l", "special=key", "-o", "name"); pods != "" {
			t.Errorf("pods %q have the VM's own label", pods)
		}
	})
	t.Run("9.4.3-C3 a selector that matches nothing gives no endpoints", func(t *testing.T) {
		if got := endpoints(); got != "" {
			t.Errorf("endpoints %q", got)
		}
	})
	t.Run("9.4.3-C4 the label takes effect with a restart", func(t *testing.T) {
		machine{name: "web-01", labels: "special: key"}.apply(t, ns)
		if got := endpoints(); got != "" {
			t.Errorf("endpoints %q before the restart", got)
		}
		restart(t, ns, "web-01", vmi)
		cluster.Eventually(t, boot, "the Service has an endpoint", func() error {
			if endpoints() == "" {
				return errors.New("no endpoint yet")
			}
			return nil
		})
	})
	t.Run("9.4.3-C2 labels of the template reach the launcher's pod", func(t *testing.T) {
		launcher := cluster.LauncherPod(t, cluster.Running(t, ns, "web-01"))
		if launcher.Labels["special"] != "key" {
			t.Errorf("labels %v", launcher.Labels)
		}
	})
	t.Run("9.4.3-C5 the network carries the service", func(t *testing.T) {
		cluster.Eventually(t, boot, "the Service answers", func() error {
			_, err := box.run("curl -sfm3 http://web-01-svc/hostname")
			return err
		})
	})
	t.Run("9.4.3-C6 type and protocol are from the list", func(t *testing.T) {
		refusedWith(t, ns, strings.Replace(nodePortManifest, "type: NodePort", "type: Nodeport", 1), nil, `supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`)
		refusedWith(t, ns, strings.Replace(nodePortManifest, "protocol: TCP", "protocol: tcp", 1), nil, `supported values: "SCTP", "TCP", "UDP"`)
	})
	t.Run("9.4.3-C7 ports as a map are refused", func(t *testing.T) {
		refusedWith(t, ns, strings.Replace(nodePortManifest, "- {protocol", "{protocol", 1), nil, "ports")
	})
	t.Run("9.4.3-C8 a node port lies in the range", func(t *testing.T) {
		refusedWith(t, ns, strings.Replace(nodePortManifest, "30376", "29999", 1), nil, "The range of valid ports is 30000-32767")
	})
}

const nodePortManifest = `
apiVersion: v1
kind: Service
metadata: {name: web-01-svc}
spec:
  selector: {special: key}
  type: NodePort
  ports:
    - {protocol: TCP, port: 80, targetPort: 80, nodePort: 30376}
`

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// restart replaces a VM's instance and waits for the new one.
func restart(t *testing.T, ns, name string, old *virtv1.VirtualMachineInstance) {
	t.Helper()
	body, err := cluster.Kubectl(t.Context(), "delete", "vmi", name, "-n", ns)
	if err != nil {
		t.Fatal(body, err)
	}
	cluster.Eventually(t, boot, "VM "+name+" has a new instance", func() error {
		if vmi := cluster.Running(t, ns, name); vmi.UID == old.UID {
			return errors.New("still the old one")
		}
		return nil
	})
}
