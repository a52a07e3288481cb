// Package virtctl tests Patchbay's API with the published command line client, against the real API server and a fake node agent.
package virtctl

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"patchbay/api/crds"
	"patchbay/internal/admission"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/subresource"
	"patchbay/test/apiserver"
	"patchbay/test/fakeagent"
)

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

const listen = apiserver.Address + ":9443"

// world is what the controller serves, as it serves it, and clients of it.
type world struct {
	ctx        context.Context
	controller client.Client
	agent      *fakeagent.Agent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	own := server.As(admission.ControllerUser)
	must(t, bootstrap.Apply(ctx, server.Config, nil))
	must(t, crds.Apply(ctx, own))
	types := runtime.NewScheme()
	must(t, scheme.AddToScheme(types))
	must(t, virtv1.AddToScheme(types))
	c, err := client.New(own, client.Options{Scheme: types})
	must(t, err)
	kube, err := kubernetes.NewForConfig(own)
	must(t, err)
	front, err := subresource.FrontProxy(ctx, kube)
	must(t, err)

	w := &world{ctx: ctx, controller: c, agent: fakeagent.Start(t)}
	verbs := subresource.NewServer(subresource.Config{
		Client: c, Authenticator: front, AgentTLS: w.agent.ClientTLS(t, admission.ControllerUser), Dial: w.agent.Dial,
	})
	hooks := admission.NewServer(admission.Config{Policy: admission.DefaultPolicy, Reader: c})
	mux := http.NewServeMux()
	mux.Handle(admission.Prefix, hooks)
	for _, path := range subresource.Paths() {
		mux.Handle(path, verbs)
	}
	serve(t, mux)
	must(t, hooks.Install(ctx, own, "https://"+listen, server.CA.PEM))
	must(t, subresource.Install(ctx, c, subresource.Target{Address: netip.MustParseAddrPort(listen), Authority: server.CA.PEM}))
	w.node(t)
	w.until(t, "version", "Server Version")
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, handler http.Handler) {
	t.Helper()
	issued, err := server.CA.Issue(admission.ControllerUser, nil, apiserver.Address, "*.patchbay-system.svc")
	must(t, err)
	pair, err := tls.X509KeyPair(issued.Certificate, issued.Key)
	must(t, err)
	listener, err := server.Listen(listen)
	must(t, err)
	web := &http.Server{
		Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), // the API server's probes break connections off by the dozen
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() { web.Close(); <-done })
}

func (w *world) node(t *testing.T) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	admin, err := client.New(server.Config, client.Options{})
	must(t, err)
	must(t, admin.Create(w.ctx, node))
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fakeagent.Address}}
	must(t, admin.Status().Update(w.ctx, node))
}

// virtctl runs a command and returns everything it printed. Its standard input stays open until it ends.
func (w *world) virtctl(stdin, command string) (string, error) {
	in, typing, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer in.Close()
	defer typing.Close()
	if _, err := typing.WriteString(stdin); err != nil {
		return "", err
	}
	out, problems, err := server.Program(w.ctx, in, "virtctl", strings.Fields(command)...)
	return out + problems, err
}

// until repeats a command until it prints something: the API server takes a while to pass requests on.
func (w *world) until(t *testing.T, command, want string) {
	t.Helper()
	for {
		out, err := w.virtctl("", command)
		if err == nil && strings.Contains(out, want) {
			return
		}
		if w.ctx.Err() != nil {
			t.Fatalf("virtctl %s: %v: %s", command, err, out)
		}
	}
}

// vm makes a VM as a user would.
func (w *world) vm(t *testing.T, name, strategy string) {
	t.Helper()
	manifest := "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: \"" + name + "\"}\n" +
		"spec: {runStrategy: " + strategy + ", template: {metadata: {labels: {app: \"" + name + "\"}}, spec: {domain: {memory: {guest: 64Mi}, devices: {}}}}}\n"
	if _, problems, err := server.Kubectl(w.ctx, strings.NewReader(manifest), "create", "-f", "-"); err != nil {
		t.Fatal(problems)
	}
}

// vmi makes an instance and lets it look as the controller and the agent would make it look.
func (w *world) vmi(t *testing.T, name, status string) {
	t.Helper()
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	must(t, yaml.Unmarshal([]byte("domain: {memory: {guest: 64Mi}, devices: {}}"), &vmi.Spec))
	must(t, w.controller.Create(w.ctx, vmi))
	must(t, yaml.Unmarshal([]byte(status), &vmi.Status))
	must(t, w.controller.Update(w.ctx, vmi))
}
