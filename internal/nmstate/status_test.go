package nmstate

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nmstate/kubernetes-nmstate/api/shared"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPhasesAreReadAsWritten(t *testing.T) {
	var list shared.ConditionList
	for _, phase := range []Phase{Waiting, Pending, Progressing, Retrying, Failing, Aborted, Available, Progressing} {
		SetPhase(&list, phase, "text", time.Unix(1, 0))
		if got := PhaseOf(list); got != phase {
			t.Errorf("%s reads as %s", phase, got)
		}
		count := 0
		for _, c := range list {
			if c.Status == corev1.ConditionTrue {
				count++
			}
		}
		want := map[Phase]int{Waiting: 0, Retrying: 2}
		if n, ok := want[phase]; (ok && count != n) || (!ok && count != 1) {
			t.Errorf("%s has %d true conditions: %+v", phase, count, list)
		}
	}
}

func TestTransitionTimeChangesWithTheStatusOnly(t *testing.T) {
	var list shared.ConditionList
	SetPhase(&list, Progressing, "one", time.Unix(1, 0))
	SetPhase(&list, Progressing, "two", time.Unix(2, 0))
	c := list.Find(shared.NodeNetworkConfigurationEnactmentConditionProgressing)
	if c.LastTransitionTime.Unix() != 1 || c.LastHeartbeatTime.Unix() != 2 || c.Message != "two" {
		t.Errorf("%+v", c)
	}
}

func TestMaxUnavailable(t *testing.T) {
	value := func(s string) *intstr.IntOrString { v := intstr.Parse(s); return &v }
	for _, c := range []struct {
		wanted *intstr.IntOrString
		nodes  int
		want   int
	}{{nil, 4, 2}, {nil, 3, 2}, {nil, 1, 1}, {nil, 0, 1}, {value("10%"), 4, 1}, {value("51%"), 10, 6}, {value("3"), 10, 3}, {value("0"), 10, 1}, {value("many"), 10, 5}} {
		if got := MaxUnavailable(c.wanted, c.nodes); got != c.want {
			t.Errorf("%v of %d nodes: %d, want %d", c.wanted, c.nodes, got, c.want)
		}
	}
}

func known(name string, phase Phase, turn Turn) NodeFacts {
	return NodeFacts{Name: name, Ready: true, Phase: phase, Turn: turn, Known: true}
}

func TestTurns(t *testing.T) {
	for name, c := range map[string]struct {
		nodes []NodeFacts
		limit int
		want  map[string]Turn
	}{
		"first come in order of names": {[]NodeFacts{known("c", Waiting, ""), known("a", Waiting, ""), known("b", Waiting, "")}, 2,
			map[string]Turn{"a": Go, "b": Go, "c": Wait}},
		"a node without enactment has none": {[]NodeFacts{{Name: "a", Ready: true, Phase: Waiting}}, 1, map[string]Turn{}},
		"a finished node frees its place":   {[]NodeFacts{known("a", Available, Go), known("b", Pending, Wait)}, 1, map[string]Turn{"b": Go}},
		"a busy node keeps its place":       {[]NodeFacts{known("a", Progressing, Go), known("b", Pending, Wait)}, 1, map[string]Turn{}},
		"a retrying node keeps its place":   {[]NodeFacts{known("a", Retrying, Go), known("b", Waiting, "")}, 1, map[string]Turn{"b": Wait}},
		"failures end it":                   {[]NodeFacts{known("a", Failing, Go), known("b", Pending, Wait), known("c", Waiting, "")}, 1, map[string]Turn{"b": Abort, "c": Abort}},
		"one failure of two places":         {[]NodeFacts{known("a", Failing, Go), known("b", Pending, Wait), known("c", Pending, Wait)}, 2, map[string]Turn{"b": Go}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Turns(c.nodes, c.limit)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSummaries(t *testing.T) {
	away := NodeFacts{Name: "z", Phase: Waiting}
	for name, c := range map[string]struct {
		nodes []NodeFacts
		want  Summary
	}{
		"nobody": {nil, Summary{Type: "Ignored", Reason: "NoMatchingNode", Message: "Policy does not match any node"}},
		"at work": {[]NodeFacts{known("a", Available, Go), known("b", Progressing, Go), known("c", Pending, Wait)},
			Summary{Type: "Progressing", Reason: "ConfigurationProgressing", Message: "Policy is progressing 1/3 nodes finished, 1 pending", Unavailable: 1}},
		"all well": {[]NodeFacts{known("a", Available, Go), known("b", Available, Go)},
			Summary{Type: "Available", Reason: "SuccessfullyConfigured", Message: "2/2 nodes successfully configured"}},
		"one away": {[]NodeFacts{known("a", Available, Go), away},
			Summary{Type: "Available", Reason: "SuccessfullyConfigured", Message: "1/1 nodes successfully configured, 1 nodes ignored due to NotReady state"}},
		"failed": {[]NodeFacts{known("a", Failing, Go), known("b", Aborted, Abort)},
			Summary{Type: "Degraded", Reason: "FailedToConfigure", Message: "1/2 nodes failed to configure, 1 nodes aborted configuration", Unavailable: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Summarize(c.nodes)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			var list shared.ConditionList
			ResetPolicy(&list, time.Unix(1, 0))
			got.Set(&list, time.Unix(2, 0))
			for _, condition := range list {
				if (condition.Status == corev1.ConditionTrue) != (condition.Type == c.want.Type) {
					t.Errorf("%+v", condition)
				}
			}
		})
	}
}

func TestTurnsAreOfOneGeneration(t *testing.T) {
	text := FormatTurn(3, Go)
	if ParseTurn(text, 3) != Go || ParseTurn(text, 4) != "" || ParseTurn("", 3) != "" || ParseTurn("go", 3) != "" {
		t.Errorf("%q", text)
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for try := 1; try <= 7; try++ {
		got = append(got, Backoff(try)/time.Second)
	}
	if diff := cmp.Diff([]time.Duration{1, 1, 2, 4, 8, 16, 30}, got); diff != "" {
		t.Errorf("seconds (-want +got):\n%s", diff)
	}
}
