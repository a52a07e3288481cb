package lifecycle

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"
)

func TestStepNode(t *testing.T) {
	const at = "2026-01-01T00:00:00Z" // the epoch
	out := []string{
		`patch node/node-1 labels.kubevirt.io/schedulable=false`,
		`event Warning NodeUnresponsive: the agent was last heard of at ` + at + `; no new virtual machines are placed here until it is again`,
	}
	for name, c := range map[string]struct {
		schedulable, heartbeat string
		after                  time.Duration // the heartbeat
		want                   []string
		again                  time.Duration
	}{
		"fresh":            {"true", at, 0, nil, 5 * time.Minute},
		"four minutes old": {"true", at, 4 * time.Minute, nil, time.Minute},
		"of a clock ahead": {"true", at, -time.Minute, nil, 6 * time.Minute},
		"too old":          {"true", at, 5 * time.Minute, out, 0},
		"out of service":   {"false", at, time.Hour, nil, 0},
		"without agent":    {"", "", time.Hour, nil, 0},
		"labelled by hand": {"true", "", time.Hour, nil, 0},
		"not a time":       {"true", "soon", time.Hour, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			node := agentNode("node-1", "tcg")
			node.Labels[virtv1.NodeSchedulable] = c.schedulable
			node.Annotations = map[string]string{virtv1.VirtHandlerHeartbeat: c.heartbeat}
			d := StepNode(epoch.Add(c.after), node)
			var got []string
			for _, a := range d.Actions {
				got = append(got, (&world{}).describe(a))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("actions (-want +got):\n%s", diff)
			}
			if d.After != c.again {
				t.Errorf("looks again after %v, want %v", d.After, c.again)
			}
			if fmt.Sprint(node.Labels[virtv1.NodeSchedulable]) != c.schedulable {
				t.Error("the view was changed")
			}
		})
	}
}
