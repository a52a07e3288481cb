package netconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/golden"
)

// TestRender renders every object of testdata/objects.
func TestRender(t *testing.T) {
	files, err := filepath.Glob("testdata/objects/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("objects: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text := render(t, file)
			golden.Check(t, "json", pretty(t, text))
			if strings.HasPrefix(text, "{") {
				roundTrip(t, text)
			}
		})
	}
}

func render(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, namespace, name, err := read(text)
	if err != nil {
		return fmt.Sprintf("%q", err.Error())
	}
	config, err := Render(n, namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// roundTrip reads what was rendered and renders it again.
func roundTrip(t *testing.T, text string) {
	t.Helper()
	var config struct {
		Definition string `json:"netAttachDefName"`
	}
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	n, err := Parse(config.Definition, text)
	if err != nil {
		t.Fatalf("what is rendered must be valid: %v", err)
	}
	namespace, name, _ := strings.Cut(config.Definition, "/")
	again, err := Render(n, namespace, name)
	if err != nil || again != text {
		t.Errorf("rendered again: %v\n%s\nwant\n%s", err, again, text)
	}
}

func read(text []byte) (n Network, namespace, name string, err error) {
	if bytes.Contains(text, []byte("kind: ClusterUserDefinedNetwork")) {
		var c ovnv1.ClusterUserDefinedNetwork
		if err := yaml.UnmarshalStrict(text, &c); err != nil {
			return n, "", "", err
		}
		n, err = OfCluster(&c)
		return n, "tenant", c.Name, err
	}
	var u ovnv1.UserDefinedNetwork
	if err := yaml.UnmarshalStrict(text, &u); err != nil {
		return n, "", "", err
	}
	n, err = OfNamespace(&u)
	return n, u.Namespace, u.Name, err
}

func pretty(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(text), "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n"
}

func TestNextBlock(t *testing.T) {
	for _, test := range []struct{ block, next string }{
		{"100.88.0.0/16", "100.89.0.0/16"},
		{"100.255.0.0/16", "101.0.0.0/16"},
		{"10.0.0.0/12", "10.16.0.0/12"},
		{"fd97::/64", "fd97:0:0:1::/64"},
		{"fd97:0:0:ffff::/64", "fd97:0:1::/64"},
	} {
		if got := nextBlock(netip.MustParsePrefix(test.block)); got.String() != test.next {
			t.Errorf("behind %s lies %s, want %s", test.block, got, test.next)
		}
	}
}
