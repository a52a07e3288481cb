package admission_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"patchbay/api/crds"
	"patchbay/internal/admission"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/settings"
	"patchbay/test/apiserver"
)

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

// prepare makes the API server one that a controller finds.
var prepare = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return errors.Join(bootstrap.Apply(ctx, server.Config, nil), crds.Apply(ctx, server.As(admission.ControllerUser)))
})

// installed serves the webhooks to the API server and gives clients of an administrator and of any other user.
func installed(t *testing.T) (ctx context.Context, admin client.Client, as func(user string) client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	own := server.As(admission.ControllerUser) // everything must work with the rights of the controller
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, virtv1.AddToScheme, nadv1.AddToScheme} {
		if err := add(types); err != nil {
			t.Fatal(err)
		}
	}
	connect := func(config *rest.Config) client.Client {
		c, err := client.New(config, client.Options{Scheme: types})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	admin = connect(server.Config)
	hooks := admission.NewServer(admission.Config{Policy: admission.DefaultPolicy, Reader: connect(own), Settings: settings.Default()})
	pair := serve(t, hooks)
	if err := hooks.Install(ctx, own, "https://"+apiserver.Address+":9443", pair); err != nil {
		t.Fatal(err)
	}
	waitActive(ctx, t, admin)
	return ctx, admin, func(user string) client.Client {
		config := server.As(user)
		config.Impersonate.Groups = []string{"patchbay:agents"} // what agents' certificates say; it gives the controller nothing
		return connect(config)
	}
}

// serve runs a handler on the address that the webhooks name and returns the authority of its certificate.
func serve(t *testing.T, handler http.Handler) []byte {
	t.Helper()
	issued, err := server.CA.Issue("patchbay-controller", nil, apiserver.Address)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Certificate, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := server.Listen(apiserver.Address + ":9443")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() { web.Close(); <-done })
	return server.CA.PEM
}

// waitActive asks until the API server has taken up the configurations, which it does from a watch.
func waitActive(ctx context.Context, t *testing.T, c client.Client) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		err := c.Create(ctx, vm("probe", "{domain: {devices: {}}}", ""), client.DryRunAll)
		if err != nil && strings.Contains(err.Error(), "virtualmachine-validator.kubevirt.io") {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the webhooks were not called: %v", err)
		case <-poll.C:
		}
	}
}

func vm(name, spec, strategy string) *virtv1.VirtualMachine {
	object := &virtv1.VirtualMachine{}
	object.Spec.Template = &virtv1.VirtualMachineInstanceTemplateSpec{}
	if err := yaml.Unmarshal([]byte(spec), &object.Spec.Template.Spec); err != nil {
		panic(err)
	}
	object.Name, object.Namespace = name, "default"
	if strategy != "" {
		s := virtv1.VirtualMachineRunStrategy(strategy)
		object.Spec.RunStrategy = &s
	}
	return object
}

func TestRefusalReachesTheClient(t *testing.T) {
	ctx, admin, _ := installed(t)
	bad := vm("bad", "{domain: {devices: {interfaces: [{name: a, masquerade: {}, ports: [{port: 65536}]}]}}, networks: [{name: a, pod: {}}]}", "Always")
	err := admin.Create(ctx, bad)
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		t.Fatalf("error %v, want a status", err)
	}
	want := metav1.Status{
		Status: "Failure", Code: 422, Reason: metav1.StatusReasonInvalid,
		Message: `admission webhook "virtualmachine-validator.kubevirt.io" denied the request: Port field must be in range 0 < x < 65536.`,
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{
			Type: metav1.CauseTypeFieldValueInvalid, Message: "Port field must be in range 0 < x < 65536.",
			Field: "spec.template.spec.domain.devices.interfaces[0].ports[0].port",
		}}},
	}
	got := status.Status()
	got.ListMeta = metav1.ListMeta{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestDefaultsAreStored(t *testing.T) {
	ctx, admin, _ := installed(t)
	manifest := `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: plain, namespace: default}
spec:
  running: false
  template:
    metadata: {creationTimestamp: null}
    spec:
      domain: {memory: {guest: 64Mi}, devices: {}}
      networks: []
`
	_, problems, err := server.Kubectl(ctx, strings.NewReader(manifest), "create", "-f", "-")
	if err != nil {
		t.Fatal(problems)
	}
	if want := "Warning: spec.running is deprecated, please use spec.runStrategy instead."; !strings.Contains(problems, want) {
		t.Errorf("standard error %q lacks %q", problems, want)
	}
	stored := &virtv1.VirtualMachine{}
	if err := admin.Get(ctx, client.ObjectKey{Namespace: "default", Name: "plain"}, stored); err != nil {
		t.Fatal(err)
	}
	spec := stored.Spec.Template.Spec
	if spec.Domain.Firmware.UUID == "" || spec.Domain.Firmware.Serial == "" || spec.Domain.Machine.Type != admission.DefaultMachineType {
		t.Errorf("firmware %+v, machine %+v", spec.Domain.Firmware, spec.Domain.Machine)
	}
	if len(spec.Networks)+len(spec.Domain.Devices.Interfaces) > 0 {
		t.Error("the VM got a network; only its VMI may")
	}
	checkReplace(ctx, t, admin, manifest, stored)
}

// checkReplace writes the original manifest over the stored object, as `kubectl replace` does.
func checkReplace(ctx context.Context, t *testing.T, admin client.Client, manifest string, stored *virtv1.VirtualMachine) {
	t.Helper()
	if _, problems, err := server.Kubectl(ctx, strings.NewReader(manifest), "replace", "-f", "-"); err != nil {
		t.Fatal(problems)
	}
	replaced := &virtv1.VirtualMachine{}
	if err := admin.Get(ctx, client.ObjectKeyFromObject(stored), replaced); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored.Spec, replaced.Spec); diff != "" || stored.Generation != replaced.Generation {
		t.Errorf("replace changed the machine from generation %d to %d (-before +after):\n%s", stored.Generation, replaced.Generation, diff)
	}
}

func TestInstanceIsGuarded(t *testing.T) {
	ctx, admin, as := installed(t)
	vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{Name: "bare", Namespace: "default"}}
	vmi.Spec = vm("", "{domain: {memory: {guest: 64Mi}, devices: {}}}", "").Spec.Template.Spec
	vmi.Status.Phase = virtv1.Running
	if err := admin.Create(ctx, vmi); err != nil {
		t.Fatal(err)
	}
	if vmi.Status.Phase != virtv1.Pending || vmi.Status.RuntimeUser != 107 || vmi.Spec.Domain.Devices.Interfaces[0].Masquerade == nil {
		t.Errorf("status %+v, interfaces %+v", vmi.Status, vmi.Spec.Domain.Devices.Interfaces)
	}

	vmi.Spec.Hostname = "x"
	if err := admin.Update(ctx, vmi); err == nil || !strings.Contains(err.Error(), "update of VMI object is restricted") {
		t.Errorf("spec changed by an administrator: %v", err)
	}
	vmi.Spec.Hostname = ""

	vmi.Status.Phase, vmi.Labels = virtv1.Failed, map[string]string{"app": "web"}
	if err := admin.Update(ctx, vmi); err != nil {
		t.Fatal(err)
	}
	if vmi.Status.Phase != virtv1.Pending || vmi.Labels["app"] != "web" {
		t.Errorf("after a user's edit: phase %s labels %v, want the phase kept and the label taken", vmi.Status.Phase, vmi.Labels)
	}

	vmi.Status.Phase, vmi.Status.NodeName = virtv1.Scheduled, "node-1"
	if err := as(admission.ControllerUser).Update(ctx, vmi); err != nil || vmi.Status.Phase != virtv1.Scheduled {
		t.Fatalf("the controller's status: %v, phase %s", err, vmi.Status.Phase)
	}
	vmi.Status.Phase = virtv1.Running
	other := vmi.DeepCopy()
	if err := as("patchbay:agent:node-2").Update(ctx, other); err == nil || !strings.Contains(err.Error(), "Node restriction") {
		t.Errorf("the agent of another node: %v", err)
	}
	if err := as("patchbay:agent:node-1").Update(ctx, vmi); err != nil || vmi.Status.Phase != virtv1.Running {
		t.Errorf("the agent of its node: %v, phase %s", err, vmi.Status.Phase)
	}
}

func TestMigrationIsChecked(t *testing.T) {
	ctx, admin, _ := installed(t)
	m := &virtv1.VirtualMachineInstanceMigration{ObjectMeta: metav1.ObjectMeta{GenerateName: "move-", Namespace: "default"}}
	m.Spec.VMIName = "nobody"
	if err := admin.Create(ctx, m); err == nil || !strings.Contains(err.Error(), `the VMI "default/nobody" does not exist`) {
		t.Errorf("migration of nothing: %v", err)
	}
}

func TestServiceWarning(t *testing.T) {
	ctx, _, _ := installed(t)
	service := `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80}]}
`
	_, problems, err := server.Kubectl(ctx, strings.NewReader(service), "create", "--dry-run=server", "-f", "-")
	if err != nil {
		t.Fatal(problems)
	}
	if want := "Warning: externalTrafficPolicy: Local causes downtime when a VM behind this Service live-migrates"; !strings.Contains(problems, want) {
		t.Errorf("standard error %q lacks %q", problems, want)
	}
}

// Published commands find a setting in the layout of any version, whichever the object was written in.
func TestHyperConvergedHasBothLayouts(t *testing.T) {
	ctx, _, _ := installed(t)
	const manifest = `
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata: {name: kubevirt-hyperconverged, namespace: default}
spec:
  kubeMacPoolConfiguration: {rangeStart: "02:00:00:00:00:00", rangeEnd: "02:00:00:00:00:FF"}
  liveMigrationConfig: {network: %s}
`
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		out, problems, err := server.Kubectl(ctx, strings.NewReader(stdin), append(args, "-n", "default")...)
		if err != nil {
			t.Fatal(problems)
		}
		return out
	}
	network := func(path string) string {
		return kubectl("", "get", "hco", "kubevirt-hyperconverged", "-o", "jsonpath={.spec."+path+"liveMigrationConfig.network}")
	}
	kubectl(fmt.Sprintf(manifest, "one"), "apply", "-f", "-")
	for _, kind := range []string{"hco", "hyperconvergeds.v1beta1.hco.kubevirt.io", "hyperconvergeds.v1.hco.kubevirt.io"} {
		const want = `{"rangeEnd":"02:00:00:00:00:FF","rangeStart":"02:00:00:00:00:00"}`
		for _, section := range []string{"", "networking."} {
			if got := kubectl("", "get", kind, "kubevirt-hyperconverged", "-o", "jsonpath={.spec."+section+"kubeMacPoolConfiguration}"); got != want {
				t.Errorf("%s, %q: %s", kind, section, got)
			}
		}
	}
	kubectl("", "patch", "hco", "kubevirt-hyperconverged", "--type=merge", "-p", `{"spec":{"virtualization":{"liveMigrationConfig":{"network":"two"}}}}`)
	if a, b := network(""), network("virtualization."); a != "two" || b != "two" {
		t.Errorf("after an edit of v1's layout: %s, %s", a, b)
	}
	for _, how := range [][]string{{"apply", "-f", "-"}, {"replace", "-f", "-"}, {"apply", "--server-side", "--force-conflicts", "-f", "-"}} {
		kubectl(fmt.Sprintf(manifest, how[0]), how...)
		if a, b := network(""), network("virtualization."); a != how[0] || b != how[0] {
			t.Errorf("after %v of v1beta1's layout: %s, %s", how, a, b)
		}
	}
	kubectl("", "patch", "hco", "kubevirt-hyperconverged", "--type=json", "-p", `[{"op":"remove","path":"/spec/liveMigrationConfig"},{"op":"remove","path":"/spec/virtualization"}]`)
	if a, b := network(""), network("virtualization."); a+b != "" {
		t.Errorf("after a removal: %s, %s", a, b)
	}
}
