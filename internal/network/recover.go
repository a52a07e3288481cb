package network

import (
	"context"
	"fmt"
	"slices"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/podnetworks"
)

// recover books everything that was handed out before, so that nothing of it is handed out again, and says all rows that
// follow. It may be repeated.
func (n *Network) recover(ctx context.Context) error {
	if err := n.recoverNodes(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{n.recoverDefinitions, n.recoverPolicies, n.recoverClaims, n.recoverPods, n.recoverGateways} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	n.tenants.restored(n.tenants.names()...)
	return n.recoverServices(ctx)
}

func (n *Network) recoverNodes(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := n.client.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	slices.SortFunc(nodes.Items, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	exists := map[string]bool{}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		exists[node.Name] = true
		if err := n.ensureNode(ctx, node); err != nil {
			// A node without slices stops its own pods only; its controller tries again.
			n.Log.Error("node cannot be restored", "node", node.Name, "error", err)
		}
	}
	known, err := n.ledger.nodes(ctx)
	if err != nil {
		return err
	}
	for _, name := range known {
		if !exists[name] {
			if err := n.forgetNode(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverPods books the addresses of pods. Should two claim one address, it belongs to the one that runs with it, or else
// to the older one.
func (n *Network) recoverPods(ctx context.Context) error {
	var pods corev1.PodList
	if err := n.live.List(ctx, &pods); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	slices.SortStableFunc(pods.Items, func(a, b corev1.Pod) int {
		if x, y := runsAsAnnotated(&a), runsAsAnnotated(&b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for i := range pods.Items {
		pod := &pods.Items[i]
		networks, err := podnetworks.ParsePod(pod.Annotations)
		network, annotated := networks[podnetworks.Default]
		if err != nil || !annotated || !connected(pod) {
			continue // decided by its controller
		}
		key := client.ObjectKeyFromObject(pod)
		if err := n.restorePod(pod, network); err != nil {
			n.Log.Warn("pod's addresses cannot be restored", "pod", key, "error", err)
			continue
		}
		n.restoreAttachments(ctx, pod)
		if err := n.setPodRows(ctx, pod, n.network(network.IPs, network.Role == podnetworks.InfrastructureLocal)); err != nil {
			return err
		}
	}
	return nil
}

// recoverClaims keeps what claims have, before any pod gets something.
func (n *Network) recoverClaims(ctx context.Context) error {
	var claims ipamclaimsv1alpha1.IPAMClaimList
	if err := n.live.List(ctx, &claims); err != nil {
		return fmt.Errorf("list IPAMClaims: %w", err)
	}
	for i := range claims.Items {
		n.restoreClaim(&claims.Items[i])
	}
	return nil
}

// runsAsAnnotated tells whether the addresses in the annotation are those that the kubelet saw.
func runsAsAnnotated(pod *corev1.Pod) bool {
	networks, err := podnetworks.ParsePod(pod.Annotations)
	network := networks[podnetworks.Default]
	if err != nil || pod.Status.PodIP == "" || len(network.IPs) == 0 {
		return false
	}
	return strings.EqualFold(network.IPs[0].Addr().String(), pod.Status.PodIP)
}

func (n *Network) recoverServices(ctx context.Context) error {
	var services corev1.ServiceList
	if err := n.client.List(ctx, &services); err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for i := range services.Items {
		if err := n.ensureService(ctx, &services.Items[i]); err != nil {
			return err
		}
	}
	return nil
}
