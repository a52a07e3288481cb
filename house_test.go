// Package patchbay holds the rules of the house that a compiler does not check.
package patchbay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "patchbay/"

// layers lists concepts from the top down. A package belongs to the longest concept that is a prefix of its path. It imports packages of
// its own concept and of lower layers; nothing of its own layer or above.
var layers = [][]string{
	{"cmd"},
	{"internal/controller", "internal/quickstart", "internal/vmctl"},
	{"internal/agent", "internal/cluster", "internal/dns", "internal/hyperconverged", "internal/image", "internal/network", "internal/subresource", "internal/tenancy", "internal/vm"},
	{"internal/guestshell", "internal/volume"},
	{"internal/admission", "internal/topology", "internal/migrate", "internal/macpool", "internal/nmstate"},
	{"internal/netpolicy", "internal/tenancy/attachment"},
	{"internal/netconf", "internal/ovn", "internal/qemu"},
	{"internal/launcher"},
	{"internal/launcher/protocol", "internal/qemu/qmp"}, // what the agent's side and the pod's side share
	{"internal/golden", "internal/home", "internal/machinepod", "internal/podnetworks", "internal/requeue", "internal/settings", "api", "examples"},
}

// outside are trees that are not the product: tests, guests and tools may import what they need.
var outside = []string{"test", "guest", "tools", "hack"}

type goPackage struct {
	ImportPath string
	Doc        string
	Name       string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Doc,Name,Imports,GoFiles", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}

func under(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// place returns a package's layer and concept.
func place(path string) (layer int, concept string, ok bool) {
	for n, concepts := range layers {
		for _, c := range concepts {
			if under(path, c) && len(c) > len(concept) {
				layer, concept, ok = n, c, true
			}
		}
	}
	return layer, concept, ok
}

func isOutside(path string) bool {
	for _, tree := range outside {
		if under(path, tree) {
			return true
		}
	}
	return false
}

func TestArrowsGoOneWay(t *testing.T) {
	for _, p := range packages(t) {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours || isOutside(path) {
			continue
		}
		layer, concept, ok := place(path)
		if !ok {
			t.Errorf("%s has no layer; add its concept to the layers of this test", path)
			continue
		}
		for _, imported := range p.Imports {
			target, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if isOutside(target) {
				t.Errorf("%s imports %s, which is not part of the product", path, target)
				continue
			}
			below, other, ok := place(target)
			if ok && other != concept && below <= layer {
				t.Errorf("%s imports %s: arrows go down only", path, target)
			}
		}
	}
}

func TestEveryPackageSaysItsJob(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, module) && p.Doc == "" {
			t.Errorf("%s has no package comment; say its job and what it must not do", p.ImportPath)
		}
	}
}
