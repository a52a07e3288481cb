package migrate

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"
)

var update = flag.Bool("update", false, "write what the stories say now")

// TestStories replays testdata/*.txt: a line beginning with "> " is something that happens, what follows is what is done about it.
func TestStories(t *testing.T) {
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
			got := replay(t, string(text))
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

func replay(t *testing.T, text string) string {
	w := newWorld()
	var out []string
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			out = append(out, line)
			w.log = nil
			words, quiet := strings.Fields(line[2:]), false
			if words[0] == "quietly" { // while the controller looks elsewhere
				words, quiet = words[1:], true
			}
			happen, known := happenings[words[0]]
			if !known {
				t.Fatalf("nothing is called %q", words[0])
			}
			happen(w, words[1:])
			if !quiet {
				w.settle()
			}
			for _, l := range w.log {
				out = append(out, "  "+l)
			}
		case line == "" || strings.HasPrefix(line, "#"):
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n") + "\n"
}

// TestEveryOrder lets things happen in any order and checks what must always hold.
func TestEveryOrder(t *testing.T) {
	possible := []string{
		"pod runs", "pod ends", "pod vanishes", "pod fits-nowhere", "source-pod-ends", "target-listens", "source-begins", "source-fails a cable was cut",
		"target-takes-over", "cancelled", "machine ends", "machine vanishes", "time 1m", "time 20m", "others 2 Running node-1 0", "others 0 Running node-1 0",
	}
	for seed := range uint64(3000) {
		chance := rand.New(rand.NewPCG(seed, 1))
		w := newWorld()
		w.made = true
		var story []string
		for range 14 {
			line := possible[chance.IntN(len(possible))]
			if chance.IntN(3) > 0 { // often what would come next
				line = possible[[]int{0, 5, 6, 8}[chance.IntN(4)]]
			}
			story = append(story, line)
			words := strings.Fields(line)
			held := w.holds()
			happenings[words[0]](w, words[1:])
			w.settle()
			if err := w.check(held); err != nil {
				t.Fatalf("seed %d: %v after\n%s\n%s", seed, err, strings.Join(story, "\n"), strings.Join(w.log, "\n"))
			}
		}
	}
}

// holds says whether the source has the guest in hand: it has begun, and is alive.
func (w *world) holds() bool {
	ms := w.state()
	return ms != nil && ms.StartTimestamp != nil && !ms.Completed && !over(w.view.Source)
}

func (w *world) check(held bool) error {
	m, ms := w.view.Migration, w.state()
	switch {
	case strings.Contains(strings.Join(w.log, " "), "DOES NOT SETTLE"):
		return fmt.Errorf("it does not settle")
	case m.Status.Phase == virtv1.MigrationSucceeded && ms != nil && (ms.Failed || !ms.Completed):
		return fmt.Errorf("succeeded, but the agents do not say so")
	case m.IsFinal() && len(m.Finalizers) > 0:
		return fmt.Errorf("it ended and keeps its finalizer")
	case m.DeletionTimestamp != nil && !m.IsFinal() && ms == nil && w.view.VMI == nil:
		return fmt.Errorf("a cancelled migration goes on without its machine")
	case w.view.VMI != nil && !w.view.VMI.IsFinal() && w.view.VMI.Status.NodeName == "node-2" && w.view.Target == nil && strings.Contains(strings.Join(w.log, " "), "delete the target"):
		return fmt.Errorf("the pod that holds the guest was deleted")
	case held && ms != nil && ms.Failed && !over(w.view.Source) && !strings.Contains(ms.FailureReason, "cable"):
		return fmt.Errorf("the controller says failed (%s) while the source has the guest in hand", ms.FailureReason)
	}
	return nil
}
