package hyperconverged

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"patchbay/api/crds"
	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/home"
	"patchbay/internal/macpool/watch"
	"patchbay/test/apiserver"
)

var fixture *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &fixture)) }

// running starts the controller on the real API server.
func running(t *testing.T) (context.Context, client.WithWatch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	if err := bootstrap.Apply(ctx, fixture.Config, nil); err != nil {
		t.Fatal(err)
	}
	own := fixture.As("patchbay:controller") // everything must work with the rights of the controller
	if err := crds.Apply(ctx, own); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, virtv1.AddToScheme, hcov1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := client.NewWithWatch(own, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manager.New(own, manager.Options{Scheme: scheme, Logger: logr.Discard(), Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := SetupWithManager(m, direct); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Start(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return ctx, direct
}

// wait watches the KubeVirt object until it is as wanted.
func wait(ctx context.Context, t *testing.T, c client.WithWatch, what string, as func(*virtv1.KubeVirt) bool) *virtv1.KubeVirt {
	t.Helper()
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	w, err := c.Watch(bounded, &virtv1.KubeVirtList{}, client.InNamespace(home.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last *virtv1.KubeVirt
	for event := range w.ResultChan() {
		if kv, ok := event.Object.(*virtv1.KubeVirt); ok {
			if last = kv; as(kv) {
				return kv
			}
		}
	}
	t.Fatalf("the KubeVirt object never was %s; last seen %+v", what, last)
	return nil
}

func disabled(gate string) func(*virtv1.KubeVirt) bool {
	return func(kv *virtv1.KubeVirt) bool {
		d := kv.Spec.Configuration.DeveloperConfiguration
		return d != nil && slices.Contains(d.DisabledFeatureGates, gate)
	}
}

func TestKubeVirtFollows(t *testing.T) {
	ctx, c := running(t)
	kv := wait(ctx, t, c, "deployed", func(kv *virtv1.KubeVirt) bool { return kv.Status.Phase == virtv1.KubeVirtPhaseDeployed })
	if kv.Name != home.KubeVirt.Name || kv.Status.ObservedKubeVirtVersion != Version || !disabled(gatePasst)(kv) {
		t.Errorf("KubeVirt %s: %+v", kv.Name, kv)
	}

	if _, problems, err := fixture.Kubectl(ctx, nil, "annotate", "hco", hcov1beta1.Name, "-n", home.Namespace, hcov1beta1.PasstAnnotation+"=true", "--overwrite"); err != nil {
		t.Fatal(problems)
	}
	kv = wait(ctx, t, c, "with passt", func(kv *virtv1.KubeVirt) bool { return !disabled(gatePasst)(kv) })
	if _, registered := kv.Spec.Configuration.NetworkConfiguration.Binding["passt"]; !registered {
		t.Error("the passt plugin is not registered")
	}

	byHand := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"configuration":{
		"developerConfiguration":{"useEmulation":true},"network":{"defaultNetworkInterface":"bridge"}}}}`))
	if err := c.Patch(ctx, kv, byHand); err != nil {
		t.Fatal(err)
	}
	wait(ctx, t, c, "restored", func(kv *virtv1.KubeVirt) bool {
		c := kv.Spec.Configuration
		return c.NetworkConfiguration.NetworkInterface == "masquerade" && c.DeveloperConfiguration.UseEmulation
	})

	for _, args := range [][]string{
		{"wait", "hco", hcov1beta1.Name, "-n", home.Namespace, "--for=condition=Available", "--timeout=20s"},
		{"wait", "kv", home.KubeVirt.Name, "-n", home.Namespace, "--for=condition=Available", "--timeout=20s"},
		{"create", "namespace", "openshift-cnv"},
	} {
		if _, problems, err := fixture.Kubectl(ctx, nil, args...); err != nil {
			t.Fatal(problems)
		}
	}
	documented := &hcov1beta1.HyperConverged{}
	documented.Name, documented.Namespace = hcov1beta1.Name, "openshift-cnv"
	network := "migration-net"
	documented.Spec.LiveMigrationConfig = &hcov1beta1.LiveMigrationConfig{Network: &network}
	if err := c.Create(ctx, documented); err != nil {
		t.Fatal(err)
	}
	wait(ctx, t, c, "that of the documented namespace", func(kv *virtv1.KubeVirt) bool {
		m := kv.Spec.Configuration.MigrationConfiguration
		return m.Network != nil && *m.Network == network && disabled(gatePasst)(kv) && kv.Spec.Configuration.DeveloperConfiguration.UseEmulation
	})

	checkMACRange(ctx, t, c, documented)
	checkPatchAnnotation(ctx, t, c)
}

// configMap waits until the pool's ConfigMap is as wanted.
func configMap(ctx context.Context, t *testing.T, c client.Client, what string, as func(map[string]string) bool) map[string]string {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
		m := &corev1.ConfigMap{}
		err := c.Get(ctx, client.ObjectKey{Namespace: home.Namespace, Name: watch.RangeConfigMap}, m)
		if err == nil && as(m.Data) {
			return m.Data
		}
		if time.Now().After(deadline) {
			t.Fatalf("the MAC pool's ConfigMap never was %s: %v, %v", what, m.Data, err)
		}
	}
}

// checkMACRange: the range is random and stays, until the administrator chooses one.
func checkMACRange(ctx context.Context, t *testing.T, c client.Client, h *hcov1beta1.HyperConverged) {
	t.Helper()
	first := configMap(ctx, t, c, "made", func(d map[string]string) bool { return d[watch.RangeStart] != "" })
	if !strings.HasPrefix(first[watch.RangeStart], "02:") || !strings.HasSuffix(first[watch.RangeStart], ":00:00:00") || !strings.HasSuffix(first[watch.RangeEnd], ":ff:ff:ff") {
		t.Errorf("the range of a cluster that chose none: %v", first)
	}
	patch := func(text string) {
		t.Helper()
		if err := c.Patch(ctx, h, client.RawPatch(types.MergePatchType, []byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"spec":{"kubeMacPoolConfiguration":{"rangeStart":"06:00:00:00:00:00","rangeEnd":"06:00:00:FF:FF:FF"}}}`)
	configMap(ctx, t, c, "that of the object", func(d map[string]string) bool {
		return d[watch.RangeStart] == "06:00:00:00:00:00" && d[watch.RangeEnd] == "06:00:00:FF:FF:FF" && d[watch.RefuseDuplicates] == ""
	})
	patch(`{"metadata":{"annotations":{"` + StrictMACsAnnotation + `":"true"}},"spec":{"kubeMacPoolConfiguration":null}}`)
	configMap(ctx, t, c, "strict, and keeps the range", func(d map[string]string) bool {
		return d[watch.RangeStart] == "06:00:00:00:00:00" && d[watch.RefuseDuplicates] == "true"
	})
}

// checkPatchAnnotation: the published way to settings without a field, and what the status says of it.
func checkPatchAnnotation(ctx context.Context, t *testing.T, c client.WithWatch) {
	t.Helper()
	kubectl := func(args ...string) {
		t.Helper()
		if _, problems, err := fixture.Kubectl(ctx, nil, append(args, "-n", "openshift-cnv")...); err != nil {
			t.Fatal(problems)
		}
	}
	kubectl("annotate", "hco", hcov1beta1.Name, KubeVirtPatchAnnotation+`=[{"op":"add","path":"/spec/configuration/machineType","value":"pc-q35-8.2"}]`)
	wait(ctx, t, c, "patched", func(kv *virtv1.KubeVirt) bool { return kv.Spec.Configuration.MachineType == "pc-q35-8.2" })
	kubectl("wait", "hco", hcov1beta1.Name, "--for=condition=TaintedConfiguration", "--timeout=60s")
	kubectl("annotate", "hco", hcov1beta1.Name, "--overwrite", KubeVirtPatchAnnotation+`=nonsense`)
	kubectl("wait", "hco", hcov1beta1.Name, "--for=condition=Degraded", "--timeout=60s")
	kubectl("annotate", "hco", hcov1beta1.Name, KubeVirtPatchAnnotation+"-")
	kubectl("wait", "hco", hcov1beta1.Name, "--for=condition=Degraded=false", "--timeout=60s")
}
