package launcherpod

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"patchbay/internal/tenancy/attachment"
)

var update = flag.Bool("update", false, "write the golden files")

// scene is one file of testdata.
type scene struct {
	VMI              virtv1.VirtualMachineInstance `json:"vmi"`
	Claims           map[string]Claim              `json:"claims"`
	NetworkResources map[string]string             `json:"networkResources"`
	Overlay          map[string]attachment.Request `json:"overlay"`
	KVM              bool                          `json:"kvm"`
	Migration        *Migration                    `json:"migration"`
}

func testCluster() Cluster {
	return Cluster{
		LauncherImage: "patchbay.io/launcher:test",
		Plugins: map[string]virtv1.InterfaceBindingPlugin{
			"vdpa": {NetworkAttachmentDefinition: "plugins/vdpa"}, "l2bridge": {},
		},
	}
}

// buildScenes builds the pod of each file in testdata.
func buildScenes(t *testing.T) map[string]*corev1.Pod {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s scene
		if err := yaml.UnmarshalStrict(text, &s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		pod, err := Build(Request{
			Cluster: testCluster(), VMI: &s.VMI, Claims: s.Claims, NetworkResources: s.NetworkResources, Overlay: s.Overlay, KVM: s.KVM, Migration: s.Migration,
		})
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		pods[strings.TrimSuffix(file, ".yaml")] = pod
	}
	if len(pods) == 0 {
		t.Fatal("testdata holds no scenes")
	}
	return pods
}

func TestBuild(t *testing.T) {
	for name, pod := range buildScenes(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			got, err := yaml.Marshal(pod)
			if err != nil {
				t.Fatal(err)
			}
			golden := name + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("pod differs (run with -update to accept):\n%s", diff)
			}
			if errs := validation.IsDNS1123Subdomain(pod.Name); len(errs) > 0 {
				t.Errorf("pod name %q: %v", pod.Name, errs)
			}
			for k, v := range pod.Labels {
				if errs := validation.IsValidLabelValue(v); len(errs) > 0 {
					t.Errorf("label %s=%q: %v", k, v, errs)
				}
			}
		})
	}
}

func TestBuildErrors(t *testing.T) {
	withMemory := virtv1.VirtualMachineInstance{}
	withMemory.Name, withMemory.Namespace = "web", "shop"
	withMemory.Spec.Domain.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: quantity("64Mi")}
	withPlugin := withMemory.DeepCopy()
	withPlugin.Spec.Networks = []virtv1.Network{{Name: "default", NetworkSource: *virtv1.DefaultPodNetwork().NetworkSource.DeepCopy()}}
	withPlugin.Spec.Domain.Devices.Interfaces = []virtv1.Interface{{Name: "default", Binding: &virtv1.PluginBinding{Name: "magic"}}}
	empty := virtv1.VirtualMachineInstance{}
	empty.Name, empty.Namespace = "web", "shop"

	for name, c := range map[string]struct {
		vmi  *virtv1.VirtualMachineInstance
		want string
	}{
		"unknown plugin": {withPlugin, "unable to find the network binding plugin 'magic' in Kubevirt configuration"},
		"no memory":      {&empty, "no memory requested: set spec.domain.memory.guest of shop/web"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Build(Request{Cluster: testCluster(), VMI: c.vmi})
			if err == nil || err.Error() != c.want {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
