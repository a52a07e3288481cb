package placement

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("node-%d", i+1))
	}
	return out
}

func TestGatewaysAreSpread(t *testing.T) {
	const networks, nodes = 1000, 10
	first := map[string]int{}
	for i := range networks {
		chassis := Chassis(fmt.Sprint("network-", i), names(nodes))
		if len(chassis) != 3 || chassis[0] == chassis[1] || chassis[1] == chassis[2] {
			t.Fatalf("chassis of network %d: %v, want three nodes", i, chassis)
		}
		first[chassis[0]]++
	}
	for _, node := range names(nodes) {
		if first[node] < 60 || first[node] > 140 {
			t.Errorf("%s has %d of %d gateways on %d nodes", node, first[node], networks, nodes)
		}
	}
}

// TestADeadNodesGatewaysMoveAlone and come back to the same node.
func TestADeadNodesGatewaysMoveAlone(t *testing.T) {
	all := names(5)
	without := slices.Delete(slices.Clone(all), 2, 3)
	to := map[string]int{}
	for i := range 500 {
		network := fmt.Sprint("network-", i)
		before, after := Chassis(network, all)[0], Chassis(network, without)[0]
		if before == "node-3" {
			to[after]++
		} else if before != after {
			t.Errorf("%s moved from %s to %s though node-3 died", network, before, after)
		}
	}
	if len(to) != 4 {
		t.Errorf("node-3's gateways went to %v, want all others", to)
	}
}

func TestFewNodes(t *testing.T) {
	for nodes, want := range map[int]int{0: 0, 1: 1, 2: 1, 3: 3} {
		if got := Chassis("red", names(nodes)); len(got) != want {
			t.Errorf("of %d nodes: %v, want %d", nodes, got, want)
		}
	}
}

func TestNodesThatLive(t *testing.T) {
	begin := time.Unix(1000, 0)
	type hear struct {
		after time.Duration
		name  string // "" : nobody says anything
		ready bool
		sign  string
		want  []string
		again time.Duration
	}
	cases := map[string][]hear{
		"new nodes are fit at once": {
			{0, "a", true, "1", []string{"a"}, Silence}, {time.Second, "b", true, "1", []string{"a", "b"}, Silence - time.Second},
		},
		"not ready": {
			{0, "a", true, "1", []string{"a"}, Silence}, {0, "b", true, "1", []string{"a", "b"}, Silence},
			{time.Second, "b", false, "2", []string{"a"}, Silence - time.Second},
		},
		"silent, and back": {
			{0, "a", true, "1", []string{"a"}, Silence}, {0, "b", true, "1", []string{"a", "b"}, Silence},
			{20 * time.Second, "a", true, "2", []string{"a", "b"}, 5 * time.Second},
			{25 * time.Second, "", false, "", []string{"a"}, 20 * time.Second},
			{30 * time.Second, "b", true, "2", []string{"a"}, Settle},
			{39 * time.Second, "a", true, "3", []string{"a"}, time.Second},
			{40 * time.Second, "", false, "", []string{"a", "b"}, 15 * time.Second},
		},
		"all silent": {
			{0, "a", true, "1", []string{"a"}, Silence}, {time.Minute, "b", false, "1", []string{"a", "b"}, time.Hour},
		},
	}
	for name, story := range cases {
		t.Run(name, func(t *testing.T) {
			var nodes Nodes
			for _, s := range story {
				now := begin.Add(s.after)
				if s.name != "" {
					nodes.Hear(s.name, s.ready, s.sign, now)
				}
				got, again := nodes.Fit(now)
				if diff := cmp.Diff(s.want, got); diff != "" || again != s.again {
					t.Errorf("after %s: ask again in %s, want %s; -want +got:\n%s", s.after, again, s.again, diff)
				}
			}
		})
	}
}
