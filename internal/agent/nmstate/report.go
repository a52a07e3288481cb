package nmstate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nmstate/kubernetes-nmstate/api/shared"
	nmstatev1beta1 "github.com/nmstate/kubernetes-nmstate/api/v1beta1"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// How often a report is written.
const (
	reportPeriod = time.Minute
	reportJitter = 6 * time.Second
	// reportGap keeps a burst of changes, such as pods that start, from becoming a burst of reports.
	reportGap = 5 * time.Second
	// reportSettle lets changes that belong together become one report.
	reportSettle = 500 * time.Millisecond
)

// Reporter keeps the node's NodeNetworkState.
type Reporter struct {
	Node   *Node
	Client client.Client
	Live   client.Reader
	Log    *slog.Logger

	now     chan struct{}
	written []byte
}

// NewReporter makes a reporter that has written nothing yet.
func NewReporter(node *Node, c client.Client, live client.Reader, log *slog.Logger) *Reporter {
	return &Reporter{Node: node, Client: c, Live: live, Log: log, now: make(chan struct{}, 1)}
}

// Soon asks for a report; it does not wait for it.
func (r *Reporter) Soon() {
	select {
	case r.now <- struct{}{}:
	default: // asked for already
	}
}

// Start reports until the context ends: at changes, and once a minute for what no notification tells of.
func (r *Reporter) Start(ctx context.Context) error {
	go r.watch(ctx)
	failed := ""
	for {
		err := r.report(ctx)
		switch {
		case err == nil:
			failed = ""
		case ctx.Err() == nil && err.Error() != failed:
			failed = err.Error()
			r.Log.Warn("the node's network is not reported", "error", err)
		}
		gap := wait(ctx, reportGap)
		if gap != nil {
			return nil
		}
		period, cancel := context.WithTimeout(ctx, reportPeriod-reportGap+rand.N(reportJitter))
		select {
		case <-r.now:
			_ = wait(ctx, reportSettle)
		case <-period.Done():
		}
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// watch asks for a report whenever the kernel tells of a change that is not a pod's.
func (r *Reporter) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.subscribe(ctx); err != nil && ctx.Err() == nil {
			r.Log.Warn("watching the node's network again", "error", err)
		}
		r.Soon()
		_ = wait(ctx, reportGap)
	}
}

func (r *Reporter) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 3)
	lost := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links, addresses, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: lost}),
		netlink.AddrSubscribeWithOptions(addresses, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: lost}),
		netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: lost}),
	)
	if err != nil {
		cancel()
		return fmt.Errorf("watch the node's network: %w", err)
	}
	defer drain(links)
	defer drain(addresses)
	defer drain(routes)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("notifications of devices ended")
			}
			if !transient(u.Attrs().Name) {
				r.Soon()
			}
		case _, ok := <-addresses:
			if !ok {
				return errors.New("notifications of addresses ended")
			}
			r.Soon()
		case _, ok := <-routes:
			if !ok {
				return errors.New("notifications of routes ended")
			}
			r.Soon()
		}
	}
}

// drain lets a sender end that is about to hand over one more.
func drain[T any](updates <-chan T) {
	go func() {
		for range updates {
		}
	}()
}

// report writes the network when it is not what was written last.
func (r *Reporter) report(ctx context.Context) error {
	state, err := r.Node.Observe()
	if err != nil {
		return err
	}
	document, err := yaml.Marshal(state)
	if err != nil || bytes.Equal(document, r.written) {
		return err
	}
	object, err := r.object(ctx)
	if err != nil {
		return err
	}
	before := object.DeepCopy()
	now := metav1.Now()
	object.Status.CurrentState = shared.State{Raw: document}
	object.Status.LastSuccessfulUpdateTime = now
	object.Status.Conditions.Set(shared.NodeNetworkStateConditionAvailable, corev1.ConditionTrue, shared.NodeNetworkStateConditionSuccessfullyConfigured, "The network of this node is reported")
	object.Status.Conditions.Set(shared.NodeNetworkStateConditionFailing, corev1.ConditionFalse, shared.NodeNetworkStateConditionSuccessfullyConfigured, "")
	if err := r.Client.Status().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("write NodeNetworkState %s: %w", r.Node.Name, err)
	}
	r.written = document
	return nil
}

// object reads the node's own object, or makes it.
func (r *Reporter) object(ctx context.Context) (*nmstatev1beta1.NodeNetworkState, error) {
	object := &nmstatev1beta1.NodeNetworkState{}
	err := r.Live.Get(ctx, client.ObjectKey{Name: r.Node.Name}, object)
	if !apierrors.IsNotFound(err) {
		return object, err
	}
	var node corev1.Node
	if err := r.Live.Get(ctx, client.ObjectKey{Name: r.Node.Name}, &node); err != nil {
		return nil, err
	}
	object = &nmstatev1beta1.NodeNetworkState{ObjectMeta: metav1.ObjectMeta{
		Name: node.Name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
	}}
	return object, r.Client.Create(ctx, object)
}
