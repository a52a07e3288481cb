// Package placement decides which nodes the gateways of tenants' networks are on, and which nodes may have any. It is pure: it
// must not read a clock or an API server.
package placement

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"time"
)

const (
	// Silence is how long a node may say nothing before it counts as dead: two and a half of the kubelet's renewals. OVN's
	// own liveness checks (BFD) act sooner where three nodes or more can have a gateway; with two they never do.
	Silence = 25 * time.Second
	// Settle is how long a node must live again before it gets gateways back: its flows come after its kubelet.
	Settle = 10 * time.Second

	standbys = 2
)

// Chassis are the nodes of a network's gateway, the wanted one first. Every network has an order of its own of all nodes, so
// gateways are spread, those of a dead node are spread over the others, and no other gateway moves. Of two nodes only one is
// named: the second could not take over by itself, and the checks for it would cost the first seconds of the gateway's life.
func Chassis(network string, nodes []string) []string {
	rank := map[string]string{}
	for _, node := range nodes {
		sum := sha256.Sum256([]byte(network + "\x00" + node))
		rank[node] = string(sum[:])
	}
	order := slices.Clone(nodes)
	slices.SortFunc(order, func(a, b string) int { return cmp.Compare(rank[a], rank[b]) })
	if len(order) <= 2 {
		return order[:min(1, len(order))]
	}
	return order[:1+standbys]
}

// Nodes remembers which nodes live. The zero value knows none.
type Nodes struct {
	known map[string]*node
}

type node struct {
	ready bool
	sign  string    // the last sign of life, whatever it is
	heard time.Time // when it was new
	since time.Time // when the node came back to life; zero when it has lived as long as it is known
	alive bool
}

// Hear takes what is known of a node now: whether Kubernetes calls it ready, and its last sign of life. How old the sign is
// counts by our clock and not by the node's.
func (n *Nodes) Hear(name string, ready bool, sign string, now time.Time) {
	if n.known == nil {
		n.known = map[string]*node{}
	}
	k, before := n.known[name]
	if !before {
		k = &node{heard: now, sign: sign, alive: true}
		n.known[name] = k
	}
	if sign != k.sign {
		k.sign, k.heard = sign, now
	}
	k.ready = ready
}

// Forget removes a node.
func (n *Nodes) Forget(name string) { delete(n.known, name) }

// Fit are the nodes that may have gateways, in order, and when to ask again at the latest. When all are dead it is all of
// them: who cannot tell the living from the dead must not take the living out.
func (n *Nodes) Fit(now time.Time) (names []string, again time.Duration) {
	again = time.Hour
	for name, k := range n.known {
		if k.fit(now, &again) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		for name := range n.known {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, again
}

func (k *node) fit(now time.Time, again *time.Duration) bool {
	silent := now.Sub(k.heard)
	alive := k.ready && silent < Silence
	if alive && !k.alive {
		k.since = now
	}
	k.alive = alive
	if !alive {
		return false
	}
	*again = min(*again, Silence-silent)
	if wait := Settle - now.Sub(k.since); !k.since.IsZero() && wait > 0 {
		*again = min(*again, wait)
		return false
	}
	return true
}
