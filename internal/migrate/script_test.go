package migrate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/golden"
)

func TestStories(t *testing.T) {
	golden.Stories(t, func(*testing.T) golden.Happen { return newWorld().happen })
}

// happen lets the controller look, unless the event's first word is "quietly": then it looks elsewhere.
func (w *world) happen(words []string) ([]string, error) {
	w.log = nil
	quiet := words[0] == "quietly"
	if quiet {
		words = words[1:]
	}
	happen, known := happenings[words[0]]
	if !known {
		return nil, fmt.Errorf("nothing is called %q", words[0])
	}
	happen(w, words[1:])
	if !quiet {
		w.settle()
	}
	return w.log, nil
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
