package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"patchbay/internal/cluster/layout"
)

func TestCompleteNames(t *testing.T) {
	home := t.TempDir()
	t.Setenv(layout.HomeVariable, home)
	for _, name := range []string{"default", "test"} {
		if err := os.MkdirAll(filepath.Join(home, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, name, "cluster.json"), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(home, "foreign"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, words := range map[string][]string{"flag": nil, "before kubectl": {"--name"}} {
		names, directive := completeNames(nil, nil, "")
		if words != nil {
			names, directive = completeKubectl(nil, words, "")
		}
		if diff := cmp.Diff([]string{"default", "test"}, names); diff != "" || directive != cobra.ShellCompDirectiveNoFileComp {
			t.Errorf("%s (-want +got), directive %d:\n%s", name, directive, diff)
		}
	}
}

func TestParseCompletions(t *testing.T) {
	words, directive := parseCompletions([]byte("pods\tpo\nnodes\n:4\n"))
	if diff := cmp.Diff([]string{"pods\tpo", "nodes"}, words); diff != "" || directive != cobra.ShellCompDirectiveNoFileComp {
		t.Errorf("(-want +got), directive %d:\n%s", directive, diff)
	}
	if words, _ := parseCompletions([]byte("nonsense")); words != nil {
		t.Errorf("an answer without directive gives %q", words)
	}
}
