package chapter9

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every manifest of examples/ is taken by the API server and the webhooks as it is, with no unknown field.
func TestExamplesAreAccepted(t *testing.T) {
	directory := filepath.Join(cluster.Root(), "examples")
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	namespaces := namespacesOf(t, files)
	if _, err := cluster.TryApply(t.Context(), "default", strings.Join(namespaces, "\n---\n"), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), boot)
		defer cancel()
		names := []string{"delete", "namespace"}
		for _, n := range namespaces {
			names = append(names, nameOf.FindStringSubmatch(n)[1])
		}
		if _, err := cluster.Kubectl(ctx, names...); err != nil { // other tests make some of them anew
			t.Error(err)
		}
	})
	out, err := cluster.Kubectl(t.Context(), "apply", "--dry-run=server", "--validate=strict", "-f", directory)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if got := strings.Count(out, "\n") + 1; got < len(files) {
		t.Errorf("%d objects of %d files:\n%s", got, len(files), out)
	}
}

var (
	isNamespace = regexp.MustCompile(`(?m)^kind: Namespace$`)
	nameOf      = regexp.MustCompile(`(?m)^  name: (\S+)$`)
)

// namespacesOf are the namespaces that manifests bring along: a dry run does not make them.
func namespacesOf(t *testing.T, files []string) []string {
	t.Helper()
	var out []string
	seen := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), "\n---\n") {
			if isNamespace.MatchString(part) && !seen[nameOf.FindStringSubmatch(part)[1]] {
				seen[nameOf.FindStringSubmatch(part)[1]] = true
				out = append(out, part)
			}
		}
	}
	return out
}
