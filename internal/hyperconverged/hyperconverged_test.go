package hyperconverged

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	"patchbay/internal/home"
)

var update = flag.Bool("update", false, "accept the KubeVirt specs as they are now")

// Each testdata/NAME.yaml is a HyperConverged object; NAME.golden is the KubeVirt spec that follows from it with two workers.
func TestKubeVirtSpec(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no objects in testdata: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			text, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			h := &hcov1beta1.HyperConverged{}
			if err := yaml.UnmarshalStrict(text, h); err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(KubeVirtSpec(h, 2))
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(input, ".yaml") + ".golden"
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
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Both layouts of one configuration lead to the same.
func TestLayoutsAreEqual(t *testing.T) {
	flat, err := os.ReadFile("testdata/flat.golden")
	if err != nil {
		t.Fatal(err)
	}
	sections, err := os.ReadFile("testdata/sections.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(flat), string(sections)); diff != "" {
		t.Errorf("-v1beta1 +v1:\n%s", diff)
	}
}

func TestEvictionFollowsTheNumberOfWorkers(t *testing.T) {
	for workers, want := range map[int]string{0: "None", 1: "None", 2: "LiveMigrate"} {
		if got := KubeVirtSpec(&hcov1beta1.HyperConverged{}, workers).Configuration.EvictionStrategy; string(*got) != want {
			t.Errorf("%d workers: %s, want %s", workers, *got, want)
		}
	}
}

func TestChoose(t *testing.T) {
	at := func(namespace, name string) hcov1beta1.HyperConverged {
		return hcov1beta1.HyperConverged{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	}
	for _, tc := range []struct {
		all  []hcov1beta1.HyperConverged
		want string
	}{
		{nil, ""},
		{[]hcov1beta1.HyperConverged{at("shop", hcov1beta1.Name), at(home.Namespace, "other")}, ""},
		{[]hcov1beta1.HyperConverged{at(home.Namespace, hcov1beta1.Name)}, home.Namespace},
		{[]hcov1beta1.HyperConverged{at(home.Namespace, hcov1beta1.Name), at("openshift-cnv", hcov1beta1.Name), at("kubevirt-hyperconverged", hcov1beta1.Name)}, "openshift-cnv"},
		{[]hcov1beta1.HyperConverged{at(home.Namespace, hcov1beta1.Name), at("kubevirt-hyperconverged", hcov1beta1.Name)}, "kubevirt-hyperconverged"},
	} {
		got := ""
		if h := choose(tc.all); h != nil {
			got = h.Namespace
		}
		if got != tc.want {
			t.Errorf("chose the one in %q, want %q", got, tc.want)
		}
	}
}
