package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/network/ipam"
	"patchbay/internal/settings"
)

// ledgerName is the ConfigMap that says which node has which slices of the default network; see ledgerOf for others.
const ledgerName = "patchbay-node-subnets"

// ledger gives slices to nodes. It is written before a node hears of its slices, and only if nobody wrote in between; so two
// controllers that both believe to lead cannot give one slice away twice, which annotations of different nodes could not
// prevent.
type ledger struct {
	client client.Client
	live   client.Reader
	name   string // of the ConfigMap
	ranges []ipam.Range

	mu     sync.Mutex
	object *corev1.ConfigMap // as last read or written; nil when it must be read
	slices *ipam.Slices
}

func newLedger(c client.Client, live client.Reader, name string, ranges []ipam.Range) *ledger {
	return &ledger{client: c, live: live, name: name, ranges: ranges}
}

// clusterRanges are what nodes have slices of on the default network.
func clusterRanges(s settings.Settings) (ranges []ipam.Range) {
	for _, cidr := range s.ClusterCIDRs {
		ranges = append(ranges, ipam.Range{CIDR: cidr, Length: s.NodePrefixLen(cidr.Addr())})
	}
	return ranges
}

// assign returns a node's slices. A node without an entry gets the wished ones if they are free, or else others.
func (l *ledger) assign(ctx context.Context, node string, wished []netip.Prefix) ([]netip.Prefix, error) {
	var assigned []netip.Prefix
	err := l.change(ctx, func() (bool, error) {
		if assigned = l.slices.Of(node); assigned != nil {
			return false, nil
		}
		var err error
		if l.slices.Restore(node, wished) == nil {
			assigned = wished
		} else {
			assigned, err = l.slices.Assign(node)
		}
		return true, err
	})
	return assigned, err
}

// release gives a node's slices back.
func (l *ledger) release(ctx context.Context, node string) error {
	return l.change(ctx, func() (bool, error) {
		had := l.slices.Of(node) != nil
		l.slices.Release(node)
		return had, nil
	})
}

// releaseOthers gives back the slices of nodes that are no more.
func (l *ledger) releaseOthers(ctx context.Context, nodes []corev1.Node) error {
	return l.change(ctx, func() (changed bool, err error) {
		for node := range maps.Clone(l.slices.Owners()) {
			if !slices.ContainsFunc(nodes, func(n corev1.Node) bool { return n.Name == node }) {
				l.slices.Release(node)
				changed = true
			}
		}
		return changed, nil
	})
}

// nodes are the nodes that have an entry.
func (l *ledger) nodes(ctx context.Context) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(ctx); err != nil {
		return nil, err
	}
	var nodes []string
	for node := range l.slices.Owners() {
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// change applies a change to the current content and writes it, again and again while somebody else writes in between.
func (l *ledger) change(ctx context.Context, apply func() (changed bool, err error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.read(ctx); err != nil {
			return err
		}
		changed, err := apply()
		if err != nil {
			l.object = nil
			return err
		}
		if !changed {
			return nil
		}
		err = l.write(ctx)
		if err == nil {
			return nil
		}
		l.object = nil
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write ConfigMap %s/%s: %w", metav1.NamespaceSystem, l.name, err)
		}
	}
}

func (l *ledger) read(ctx context.Context) error {
	if l.object != nil {
		return nil
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: l.name}}
	if err := l.live.Get(ctx, client.ObjectKeyFromObject(object), object); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read ConfigMap %s/%s: %w", metav1.NamespaceSystem, l.name, err)
	}
	l.object, l.slices = object, ipam.NewSlices(l.ranges...)
	for node, text := range object.Data {
		// An entry that somebody spoiled is as good as none: the node's annotation is asked for then.
		if prefixes, err := parseSlices(text); err == nil {
			_ = l.slices.Restore(node, prefixes)
		}
	}
	return nil
}

func (l *ledger) write(ctx context.Context) error {
	object := l.object.DeepCopy()
	object.Data = map[string]string{}
	for node, prefixes := range l.slices.Owners() {
		object.Data[node] = formatSlices(prefixes)
	}
	var err error
	if object.ResourceVersion == "" {
		err = l.client.Create(ctx, object)
	} else {
		err = l.client.Update(ctx, object)
	}
	if err == nil {
		l.object = object
	}
	return err
}

func formatSlices(prefixes []netip.Prefix) string {
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

func parseSlices(text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for t := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
