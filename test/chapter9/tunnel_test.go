package chapter9

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/test/local"
)

// localPort is a free port of this host, of both protocols.
func localPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
}

// background runs a program until the test ends.
func background(t *testing.T, user *local.Client, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	command := user.Command(ctx, program, args...)
	if err := command.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // ended by us
	})
}

func checkForwarding(t *testing.T, user *local.Client, namespace string) {
	web, echo := localPort(t), localPort(t)
	background(t, user, "virtctl", "port-forward", "vm/example-vm/"+namespace, web+":80", "udp/"+echo+":7")
	cluster.Eventually(t, soon, "the guest's page through the tunnel", func() error {
		response, err := http.Get("http://127.0.0.1:" + web + "/hostname")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && string(body) != "example-vm" {
			err = fmt.Errorf("the page says %q", body)
		}
		return err
	})
	cluster.Eventually(t, soon, "an echo through the UDP tunnel", func() error {
		conn, err := net.Dial("udp", "127.0.0.1:"+echo)
		if err != nil {
			return err
		}
		defer conn.Close()
		reply := make([]byte, 64)
		_, err = conn.Write([]byte("are you there"))
		err = errors.Join(err, conn.SetReadDeadline(time.Now().Add(3*time.Second)))
		n, readErr := conn.Read(reply)
		if err = errors.Join(err, readErr); err == nil && string(reply[:n]) != "are you there" {
			err = fmt.Errorf("the echo is %q", reply[:n])
		}
		return err
	})
}

// checkExpose makes Services of every type and connects to what they offer.
func checkExpose(t *testing.T, user *local.Client, namespace string, box toolbox, key string) {
	expose := func(args ...string) (string, error) {
		return user.Run(t.Context(), "", "virtctl", append([]string{"-n", namespace, "expose"}, args...)...)
	}
	service := func(name string) corev1.Service {
		var s corev1.Service
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("SSH.6-C1 types", func(t *testing.T) {
		for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer"} {
			name := "example-" + strings.ToLower(kind)
			out, err := expose("vm", "example-vm", "--name", name, "--type", kind, "--port", "22")
			if err != nil || !strings.Contains(out, "Service "+name+" successfully") {
				t.Errorf("%s: %q, %v", kind, out, err)
			}
			if got := service(name).Spec.Type; string(got) != kind {
				t.Errorf("type %s, want %s", got, kind)
			}
		}
		if out, err := expose("vm", "example-vm", "--name", "external", "--type", "ExternalName", "--port", "22"); err == nil {
			t.Errorf("ExternalName: %s", out)
		}
	})
	node := service("example-nodeport").Spec.Ports[0].NodePort
	t.Run("SSH.6-K2 the list shows the ports", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "service", "example-nodeport", "-n", namespace)
		if err != nil || !strings.Contains(out, fmt.Sprintf("22:%d/TCP", node)) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("SSH.6-C3 no label is needed on the VM", func(t *testing.T) {
		if selector := service("example-clusterip").Spec.Selector; len(selector) != 1 || selector["vmi.kubevirt.io/id"] != "example-vm" && selector["vm.kubevirt.io/name"] != "example-vm" {
			t.Errorf("selector %v", selector)
		}
	})
	t.Run("SSH.6-C2 the cluster IP answers in the cluster, the node port at a node", func(t *testing.T) {
		cluster.Eventually(t, soon, "an SSH server at the cluster IP", func() error {
			out, err := box.run(fmt.Sprintf("nc -w 3 %s 22 </dev/null | head -c 4", service("example-clusterip").Spec.ClusterIP))
			if err == nil && out != "SSH-" {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	})
	t.Run("SSH.6-K3 ssh to the node's port", func(t *testing.T) {
		nodes := &corev1.NodeList{}
		if err := cluster.Client.List(t.Context(), nodes); err != nil {
			t.Fatal(err)
		}
		for _, address := range nodes.Items[0].Status.Addresses {
			if address.Type != corev1.NodeInternalIP || strings.Contains(address.Address, ":") {
				continue
			}
			// The node's address belongs to the network that joins the nodes: enter it there.
			ssh := append(append([]string{"ssh"}, user.SSHOptions()...), "-i", key, "-p", strconv.Itoa(int(node)), "cloud-user@"+address.Address, "hostname")
			cluster.Eventually(t, soon, "ssh to a node's port", func() error {
				out, err := cluster.InNode(t.Context(), "fabric", ssh...)
				if err == nil && strings.TrimSpace(out) != "example-vm" {
					err = fmt.Errorf("it is %q", out)
				}
				return err
			})
		}
	})
	t.Run("SSH.6-C4 further flags", func(t *testing.T) {
		if out, err := expose("vmi", "example-vm", "--name", "further", "--port", "2222", "--target-port", "22", "--protocol", "TCP", "--port-name", "ssh",
			"--cluster-ip", "None", "--ip-family-policy", "PreferDualStack"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		s := service("further")
		if p := s.Spec.Ports[0]; s.Spec.ClusterIP != "None" || p.Port != 2222 || p.TargetPort.IntValue() != 22 || p.Name != "ssh" || len(s.Spec.IPFamilies) != 2 {
			t.Errorf("spec %+v", s.Spec)
		}
		if out, err := expose("vm", "example-vm", "--name", "nothing"); err == nil || !strings.Contains(err.Error(), "couldn't find port via --port flag or introspection") {
			t.Errorf("without a port: %s", local.Failed(out, err))
		}
	})
}
