package v1beta1

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestLayoutsAgree(t *testing.T) {
	const (
		a    = "liveMigrationConfig: {network: a}\n"
		b    = "liveMigrationConfig: {network: b}\n"
		secA = "virtualization: {liveMigrationConfig: {network: a}}\n"
		secB = "virtualization: {liveMigrationConfig: {network: b}}\n"
	)
	for _, tc := range []struct{ what, old, written, version, want string }{
		{"new, flat", "", a, "v1beta1", a + secA},
		{"new, sections", "", secA, "v1", a + secA},
		{"new, flat under v1", "", a, "v1", a + secA},
		{"new, sections under v1beta1", "", secA, "v1beta1", a + secA},
		{"the flat manifest again", a + secA, a, "v1beta1", a + secA},
		{"the sectioned manifest again", a + secA, secA, "v1", a + secA},
		{"flat changed", a + secA, b + secA, "v1beta1", b + secB},
		{"sections changed", a + secA, a + secB, "v1", b + secB},
		{"flat changed in an editor of v1", a + secA, b + secA, "v1", b + secB},
		{"sections changed in an editor of v1beta1", a + secA, a + secB, "v1beta1", b + secB},
		{"flat removed", a + secA, secA, "v1beta1", ""},
		{"sections removed", a + secA, a, "v1", ""},
		{"all removed", a + secA, "", "v1", ""},
		{"another setting of another section", a + secA, a + secA + "networking: {kubeSecondaryDNSNameServerIP: 10.0.0.1}\n", "v1beta1",
			a + secA + "networking: {kubeSecondaryDNSNameServerIP: 10.0.0.1}\nkubeSecondaryDNSNameServerIP: 10.0.0.1\n"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			read := func(text string) (s Spec) {
				if err := yaml.UnmarshalStrict([]byte(text), &s); err != nil {
					t.Fatal(err)
				}
				return s
			}
			got := read(tc.written)
			got.Agree(read(tc.old), tc.version)
			if diff := cmp.Diff(read(tc.want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
