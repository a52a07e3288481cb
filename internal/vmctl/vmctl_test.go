package vmctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestParseLogin(t *testing.T) {
	for text, want := range map[string]string{
		"web":                      " shop web",
		"web.other":                " other web",
		"vm/web":                   " shop web",
		"vmi/web/other":            " other web",
		"virtualmachine/web.other": " other web",
		"web/other":                " other web",
		"alice@vm/web.v1/other":    "alice other web.v1",
		"alice@web":                "alice shop web",
		"":                         "error",
		"vm/":                      "error",
		"vm/a/b/c":                 "error",
		"pod/a/b":                  "error",
	} {
		user, name, err := ParseLogin(text, "shop")
		got := fmt.Sprintf("%s %s %s", user, name.Namespace, name.Name)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseForwarding(t *testing.T) {
	for text, want := range map[string]Forwarding{
		"80": {"tcp", 80, 80}, "8080:80": {"tcp", 8080, 80}, "udp/5353:53": {"udp", 5353, 53}, "TCP/0:22": {"tcp", 0, 22},
	} {
		if got, err := ParseForwarding(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "x", "1:", "sctp/1", "70000", "80:0"} {
		if got, err := ParseForwarding(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func objects(t *testing.T, list ...client.Object) *Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), virtv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return &Client{api: fake.NewClientBuilder().WithScheme(scheme).WithObjects(list...).Build()}
}

var web = Name{Namespace: "shop", Name: "web"}

func webVM() *virtv1.VirtualMachine {
	vm := &virtv1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "1"}}
	vm.Spec.Template = &virtv1.VirtualMachineInstanceTemplateSpec{}
	vm.Spec.Template.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	vm.Spec.Template.Spec.Domain.Devices.Interfaces = []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}
	vm.Spec.Template.Spec.Domain.Devices.Interfaces[0].Ports = []virtv1.Port{{Port: 80}, {Port: 53, Protocol: "UDP"}}
	return vm
}

func TestPlugAndUnplug(t *testing.T) {
	c := objects(t, webVM())
	name, err := c.Plug(t.Context(), web, NIC{Network: "other/blue-l2", MAC: "02:00:00:00:00:01"})
	if err != nil || name != "blue-l2" {
		t.Fatalf("%q, %v", name, err)
	}
	if _, err := c.Plug(t.Context(), web, NIC{Network: "blue-l2"}); err == nil || !strings.Contains(err.Error(), "has an interface blue-l2 already") {
		t.Errorf("twice: %v", err)
	}
	if err := c.AwaitPlugged(t.Context(), web, "blue-l2", false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a VM that does not run: %v", err)
	}
	if err := c.Unplug(t.Context(), web, "blue-l2"); err != nil {
		t.Fatal(err)
	}
	vm, err := c.vm(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec.Template.Spec
	if i := spec.Domain.Devices.Interfaces[1]; i.State != virtv1.InterfaceStateAbsent || i.Bridge == nil || i.MacAddress != "02:00:00:00:00:01" || spec.Networks[1].Multus.NetworkName != "other/blue-l2" {
		t.Errorf("interface %+v, network %+v", i, spec.Networks[1])
	}
	if err := c.Unplug(t.Context(), web, "green"); err == nil || !strings.Contains(err.Error(), "it has default, blue-l2") {
		t.Errorf("no such interface: %v", err)
	}
}

// Edits at the same time are all made, each once.
func TestPlugAtTheSameTime(t *testing.T) {
	c := objects(t, webVM())
	var people sync.WaitGroup
	want := []string{"default"}
	for n := range 8 {
		name := fmt.Sprintf("nic-%d", n)
		want = append(want, name)
		people.Go(func() {
			if _, err := c.Plug(t.Context(), web, NIC{Name: name, Network: "blue-l2"}); err != nil {
				t.Error(err)
			}
		})
	}
	people.Wait()
	vm, err := c.vm(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	got := interfaceNames(&vm.Spec.Template.Spec)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(vm.Spec.Template.Spec.Networks) != len(want) {
		t.Errorf("%d networks (-want +got):\n%s", len(vm.Spec.Template.Spec.Networks), diff)
	}
}

// answering is a server of one verb.
func answering(t *testing.T, path, answer string) rest.Interface {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	c, err := New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c.verbs
}

func TestListAndAddresses(t *testing.T) {
	vm := webVM()
	vm.Status.PrintableStatus, vm.Status.Ready, vm.Status.Created = "Running", true, true
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	vmi.Spec = vm.Spec.Template.Spec
	vmi.Status.NodeName = "node-1"
	vmi.Status.Interfaces = []virtv1.VirtualMachineInstanceNetworkInterface{
		{Name: "default", MAC: "02:00:00:00:00:01", IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, InterfaceName: "eth0", InfoSource: "domain, guest-agent", LinkState: "up"},
		{InterfaceName: "docker0", MAC: "02:42:00:00:00:01", InfoSource: "guest-agent"},
	}
	c := objects(t, vm, vmi)
	list, err := c.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Machine{{Namespace: "shop", Name: "web", Status: "Running", Ready: true, Node: "node-1", IPs: []string{"10.128.0.5"}}}, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c.verbs = answering(t, verbsPath+"/namespaces/shop/virtualmachineinstances/web/addresses",
		`[{"interface": "default", "network": ["10.128.0.5"], "guestAgent": ["10.128.0.9"], "disagree": true}]`)
	addresses, err := c.Addresses(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	want := []Address{
		{Interface: "default", Network: "pod", Binding: "masquerade", MAC: "02:00:00:00:00:01", IPs: []string{"10.128.0.5"}, GuestName: "eth0", Link: "up", Sources: []string{"domain", "guest-agent"},
			Said: &Said{Network: []string{"10.128.0.5"}, GuestAgent: []string{"10.128.0.9"}, Disagree: true}},
		{MAC: "02:42:00:00:00:01", IPs: []string{}, GuestName: "docker0", Sources: []string{"guest-agent"}},
	}
	if diff := cmp.Diff(want, addresses); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := c.Addresses(t.Context(), Name{"shop", "db"}); err == nil || !strings.Contains(err.Error(), "does not run; start it") {
		t.Errorf("a VM that does not run: %v", err)
	}
}

func TestExpose(t *testing.T) {
	c := objects(t, webVM())
	service, err := c.Expose(t.Context(), web, Exposure{Service: "web", Type: corev1.ServiceTypeNodePort})
	if err != nil {
		t.Fatal(err)
	}
	if p := service.Spec.Ports; len(p) != 2 || p[0].Name != "port-1" || p[0].Port != 80 || p[1].Protocol != corev1.ProtocolUDP {
		t.Errorf("ports %+v", p)
	}
	if service.OwnerReferences[0].UID != "1" || service.Spec.Selector["vm.kubevirt.io/name"] != "web" {
		t.Errorf("service %+v", service)
	}
	service, err = c.Expose(t.Context(), web, Exposure{Service: "ssh", Port: 2222, TargetPort: 22, Protocol: corev1.ProtocolTCP, Headless: true})
	if err != nil || service.Spec.Ports[0].TargetPort.IntValue() != 22 || service.Spec.ClusterIP != "None" {
		t.Errorf("%+v, %v", service, err)
	}
}

// tunnels is an API server that echoes what comes through a tunnel, a message at a time.
func tunnels(t *testing.T) *Client {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/off/") {
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `{"kind":"Status","status":"Failure","message":"VMI is not started","code":409}`)
			return
		}
		up := websocket.Upgrader{Subprotocols: []string{"plain.kubevirt.io"}}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, data, err := conn.ReadMessage()
			if err != nil || conn.WriteMessage(kind, data) != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	return &Client{config: &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}}
}

func TestForward(t *testing.T) {
	c := tunnels(t)
	for _, protocol := range []string{"tcp", "udp"} {
		t.Run(protocol, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			ports, done := make(chan int, 1), make(chan error, 1)
			go func() {
				done <- c.Forward(ctx, web, Forwarding{Protocol: protocol, Remote: 7}, "127.0.0.1", func(port int) { ports <- port }, func(err error) { t.Error(err) })
			}()
			conn, err := net.Dial(protocol, fmt.Sprintf("127.0.0.1:%d", <-ports))
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"one", "two"} {
				reply := make([]byte, 16)
				if _, err := io.WriteString(conn, text); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, err := conn.Read(reply); err != nil || string(reply[:n]) != text {
					t.Errorf("%q, %v", reply[:n], err)
				}
			}
			conn.Close()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDialRefused(t *testing.T) {
	_, err := tunnels(t).Dial(t.Context(), Name{"shop", "off"}, "tcp", 22)
	if err == nil || err.Error() != "VMI is not started" {
		t.Errorf("%v", err)
	}
}
