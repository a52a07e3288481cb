// Package docs keeps the manual honest: links resolve, manifests decode. That commands parse is tested beside the commands.
package docs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
	sigsyaml "sigs.k8s.io/yaml"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	nmstatev1 "patchbay/api/nmstate/v1"
	ovnv1 "patchbay/api/ovn/v1"
)

func pages(t *testing.T) []string {
	t.Helper()
	found := []string{"../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md", "../guest/README.md"}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	link  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	kind  = regexp.MustCompile(`(?m)^kind:`)
	title = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// prose is a page without its code.
func prose(text string) string { return fence.ReplaceAllString(text, "") }

func TestLinksResolve(t *testing.T) {
	for _, page := range pages(t) {
		for _, match := range link.FindAllStringSubmatch(prose(read(t, page)), -1) {
			if err := resolve(page, match[1]); err != nil {
				t.Errorf("%s links to %s: %v", page, match[1], err)
			}
		}
	}
}

// resolve checks that a relative link leads to a file, and its anchor to a title of it.
func resolve(page, target string) error {
	if strings.Contains(target, "://") {
		return nil
	}
	path, anchor, _ := strings.Cut(target, "#")
	file := page
	if path != "" {
		file = filepath.Join(filepath.Dir(page), path)
	}
	if _, err := os.Stat(file); err != nil || anchor == "" {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, match := range title.FindAllStringSubmatch(prose(string(text)), -1) {
		if anchorOf(match[1]) == anchor {
			return nil
		}
	}
	return errors.New("no title has this anchor")
}

var notInAnchor = regexp.MustCompile(`[^a-z0-9 _-]`)

// anchorOf is the anchor that renderers of Markdown give a title.
func anchorOf(title string) string {
	return strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}

func TestEveryPictureIsUsed(t *testing.T) {
	pictures, err := filepath.Glob("images/*.svg")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, page := range pages(t) {
		all.WriteString(read(t, page))
	}
	for _, picture := range pictures {
		if !strings.Contains(all.String(), picture) {
			t.Errorf("no page shows %s", picture)
		}
	}
}

func TestYAMLBlocksDecode(t *testing.T) {
	for _, page := range pages(t) {
		for _, match := range fence.FindAllStringSubmatch(read(t, page), -1) {
			if match[1] != "yaml" {
				continue
			}
			if err := decode(t, match[2]); err != nil {
				t.Errorf("%s: %v in:\n%s", page, err, match[2])
			}
		}
	}
}

func TestExamplesDecode(t *testing.T) {
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 7 {
		t.Errorf("only %d examples were found", len(files))
	}
	for _, file := range files {
		text := read(t, file)
		if err := decode(t, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if !strings.HasPrefix(text, "# ") {
			t.Errorf("%s does not begin with what it shows", file)
		}
	}
}

func TestEveryExampleIsInTheManual(t *testing.T) {
	var all strings.Builder
	for _, page := range pages(t) {
		all.WriteString(read(t, page))
	}
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if name := filepath.Base(file); name != "quickstart.yaml" && !strings.Contains(all.String(), name) {
			t.Errorf("no page names examples/%s", name)
		}
	}
}

// decode reads whole objects by their kind; text without a kind is part of a machine.
func decode(t *testing.T, text string) error {
	t.Helper()
	for part := range bytes.SplitSeq([]byte(text), []byte("\n---\n")) {
		if len(bytes.TrimSpace(part)) == 0 {
			continue
		}
		if !kind.Match(part) {
			if err := decodePart(part); err != nil {
				return err
			}
			continue
		}
		if _, _, err := decoder(t).Decode(part, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// decodePart reads what pages show of a machine: a volume or a part of its domain.
func decodePart(text []byte) error {
	volume := sigsyaml.UnmarshalStrict(text, &virtv1.VolumeSource{})
	if volume == nil || sigsyaml.UnmarshalStrict(text, &virtv1.DomainSpec{}) == nil {
		return nil
	}
	return volume
}

// decoder knows the kinds that manifests may have, and refuses fields that they do not.
func decoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, virtv1.AddToScheme, migrationsv1.AddToScheme, hcov1beta1.AddToScheme, ovnv1.AddToScheme,
		nmstatev1.AddToScheme, nadv1.AddToScheme, multiv1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

func TestStrictness(t *testing.T) {
	for text, wanted := range map[string]bool{
		"apiVersion: v1\nkind: Service\nspec: {typ: NodePort}\n":                            false,
		"apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec: {runStrateg: Always}\n":    false,
		"containerDisk: {imag: x}\n":                                                        false,
		"apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec: {runStrategy: Always}\n":   true,
		"containerDisk: {image: x}\n":                                                       true,
		"apiVersion: v1\nkind: Service\n---\napiVersion: v1\nkind: Service\nspec: {a: 1}\n": false,
	} {
		if err := decode(t, text); (err == nil) != wanted {
			t.Errorf("%q: %v", text, err)
		}
	}
}
