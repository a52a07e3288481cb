package golden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Happen lets one thing happen, given by its words, and returns what was done about it, a line each.
type Happen func(words []string) (done []string, err error)

// Stories replays testdata/*.txt, each on a world of its own that begin makes. A line that begins with "> " is something that
// happens, the lines below it are what is done about it; lines that begin with # are for the reader. With -update the stories are
// written anew.
func Stories(t *testing.T, begin func(*testing.T) Happen) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(text), begin(t))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(text), got); diff != "" {
				t.Errorf("the story goes otherwise (run with -update to accept):\n%s", diff)
			}
		})
	}
}

// replay runs the events of a story and returns the story with what was done in answer.
func replay(t *testing.T, text string, happen Happen) string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			out = append(out, line)
			done, err := happen(strings.Fields(line[2:]))
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			for _, l := range done {
				out = append(out, "  "+l)
			}
		case line == "" || strings.HasPrefix(line, "#"):
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n") + "\n"
}
