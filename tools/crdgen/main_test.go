package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const published = "../../api/crds"

// The definitions in the repository are what the types say now, and nothing else lies beside them.
func TestDefinitionsAreUpToDate(t *testing.T) {
	fresh := t.TempDir()
	if err := run("../..", fresh); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(read(t, published), read(t, fresh)); diff != "" {
		t.Errorf("run `go generate ./api/...` (-published +generated):\n%s", diff)
	}
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "zz_*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no definitions in %s: %v", dir, err)
	}
	all := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = string(text)
	}
	return all
}
