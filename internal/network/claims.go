package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/network/attach"
	"patchbay/internal/network/ipam"
	"patchbay/internal/podnetworks"
)

// The condition of an IPAMClaim and its reasons.
const (
	claimCondition     = "IPsAllocated"
	claimAllocated     = "SuccessfulAllocation"
	claimExhausted     = "SubnetExhausted"
	claimIPConflict    = "IPAddressConflict"
	claimMACConflict   = "MACAddressConflict"
	claimInternalError = "InternalError"
)

// macAnnotation says in a claim which MAC its machine has, so that nobody else gets it while the machine is off.
const macAnnotation = "patchbay.io/mac-address"

// byNetwork is the index of claims and pods by the names of their networks.
const byNetwork = "patchbay.network"

func indexNetworks(m manager.Manager) error {
	indexer := m.GetFieldIndexer()
	err := indexer.IndexField(context.Background(), &ipamclaimsv1alpha1.IPAMClaim{}, byNetwork, func(o client.Object) []string {
		return []string{o.(*ipamclaimsv1alpha1.IPAMClaim).Spec.Network}
	})
	if err != nil {
		return err
	}
	return indexer.IndexField(context.Background(), &corev1.Pod{}, byNetwork, func(o client.Object) []string {
		networks, _ := podnetworks.ParsePod(o.GetAnnotations())
		var names []string
		for _, network := range networks {
			if network.Name != "" {
				names = append(names, network.Name)
			}
		}
		return names
	})
}

func (n *Network) addClaims(m manager.Manager) error {
	return ctrl.NewControllerManagedBy(m).Named("network-claims").For(&ipamclaimsv1alpha1.IPAMClaim{}).
		WithOptions(n.options(4)).Complete(n.afterRecovery(n.reconcileClaim))
}

func (n *Network) reconcileClaim(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var claim ipamclaimsv1alpha1.IPAMClaim
	err := n.client.Get(ctx, req.NamespacedName, &claim)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return reconcile.Result{}, err
	case err != nil:
		n.freed(ctx, n.tenants.unpin(claimHolder(req.Namespace, req.Name)))
	default:
		n.restoreClaim(&claim)
	}
	n.wakePods.Wake(n.waits.come(attach.OnClaim(req.Namespace, req.Name))...)
	return reconcile.Result{}, nil
}

// restoreClaim keeps a claim's addresses while it lives.
func (n *Network) restoreClaim(claim *ipamclaimsv1alpha1.IPAMClaim) {
	ips, err := claimedIPs(claim)
	if err == nil && len(ips) > 0 {
		err = n.tenants.pin(claim, ips)
	}
	if err != nil {
		n.Log.Warn("claim's addresses cannot be kept", "claim", client.ObjectKeyFromObject(claim), "network", claim.Spec.Network, "error", err)
	}
}

func claimedIPs(claim *ipamclaimsv1alpha1.IPAMClaim) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, text := range claim.Status.IPs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("status.ips of IPAMClaim %s/%s: %q is not an address with a prefix length", claim.Namespace, claim.Name, text)
		}
		ips = append(ips, p.Addr())
	}
	return ips, nil
}

// claimFor reads the claim that a wish names, and keeps what it has.
func (n *Network) claimFor(ctx context.Context, pod *corev1.Pod, w attach.Wish) (*ipamclaimsv1alpha1.IPAMClaim, error) {
	claim := &ipamclaimsv1alpha1.IPAMClaim{}
	err := n.client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: w.Claim}, claim)
	wait := func(err error) error { return &attach.Waiting{On: attach.OnClaim(pod.Namespace, w.Claim), Err: err} }
	switch {
	case apierrors.IsNotFound(err):
		return nil, wait(fmt.Errorf("IPAMClaim %s/%s does not exist; create it, and the pod goes on", pod.Namespace, w.Claim))
	case err != nil:
		return nil, fmt.Errorf("read IPAMClaim %s/%s: %w", pod.Namespace, w.Claim, err)
	case claim.Spec.Network != w.Network:
		return nil, wait(fmt.Errorf("ignored IPAMClaim %s/%s: it belongs to other network %q, the pod is on %q", pod.Namespace, w.Claim, claim.Spec.Network, w.Network))
	}
	ips, err := claimedIPs(claim)
	if err == nil && len(ips) > 0 {
		err = n.tenants.pin(claim, ips)
	}
	return claim, err
}

// recordClaim writes the addresses into a claim that has none, and keeps them from then on. The MAC may change with each start.
func (n *Network) recordClaim(ctx context.Context, pod *corev1.Pod, claim *ipamclaimsv1alpha1.IPAMClaim, ips []netip.Prefix, mac net.HardwareAddr) error {
	var texts []string
	var addresses []netip.Addr
	for _, ip := range ips {
		texts, addresses = append(texts, ip.String()), append(addresses, ip.Addr())
	}
	condition := metav1.Condition{
		Type: claimCondition, Status: metav1.ConditionTrue, Reason: claimAllocated, Message: "IP addresses successfully allocated",
	}
	if len(claim.Status.IPs) == 0 {
		if err := n.writeClaim(ctx, claim, texts, pod.Name, condition); err != nil {
			return err
		}
	}
	if err := n.tenants.pin(claim, addresses); err != nil || claim.Annotations[macAnnotation] == mac.String() {
		return err
	}
	return n.annotate(ctx, claim, macAnnotation, mac.String())
}

// failClaim says in a claim why it has no addresses.
func (n *Network) failClaim(ctx context.Context, claim *ipamclaimsv1alpha1.IPAMClaim, cause error) {
	condition := metav1.Condition{Type: claimCondition, Status: metav1.ConditionFalse, Reason: claimReason(cause), Message: cause.Error()}
	have := meta.FindStatusCondition(claim.Status.Conditions, claimCondition)
	if len(claim.Status.IPs) > 0 || have != nil && have.Status == condition.Status && have.Message == condition.Message {
		return
	}
	if err := n.writeClaim(ctx, claim, []string{}, "", condition); err != nil {
		n.Log.Warn("claim's condition cannot be written", "claim", client.ObjectKeyFromObject(claim), "error", err)
	}
}

func claimReason(err error) string {
	switch {
	case errors.Is(err, ipam.ErrExhausted):
		return claimExhausted
	case errors.Is(err, ipam.ErrMACTaken):
		return claimMACConflict
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrOutside), errors.Is(err, ipam.ErrKept), errors.Is(err, ipam.ErrFamilies), errors.Is(err, ipam.ErrOverride):
		return claimIPConflict
	}
	return claimInternalError
}

// writeClaim writes a claim's status unless somebody has written it since we read it: addresses are written once.
func (n *Network) writeClaim(ctx context.Context, claim *ipamclaimsv1alpha1.IPAMClaim, ips []string, pod string, condition metav1.Condition) error {
	next := claim.DeepCopy()
	meta.SetStatusCondition(&next.Status.Conditions, condition)
	status := map[string]any{"ips": ips, "conditions": next.Status.Conditions}
	if pod != "" {
		status["ownerPod"] = ipamclaimsv1alpha1.OwnerPod{Name: pod}
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.ResourceVersion}, "status": status,
	})
	if err != nil {
		return err
	}
	if err := n.client.Status().Patch(ctx, next, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("write the status of IPAMClaim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

// pin keeps a claim's addresses, if its network is there and lets addresses persist. A MAC that somebody else has is no reason to
// lose the addresses: the machine's next start tells of it.
func (t *tenants) pin(claim *ipamclaimsv1alpha1.IPAMClaim, ips []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	network, holder := claim.Spec.Network, claimHolder(claim.Namespace, claim.Name)
	space := t.spaces[network]
	if space == nil || !t.configs[network].Persistent {
		return nil
	}
	if err := space.Pin(holder, ips); err != nil {
		return err
	}
	t.claims[holder] = network
	if mac, err := net.ParseMAC(claim.Annotations[macAnnotation]); err == nil {
		_ = space.KeepMAC(holder, claimOwner(claim), mac)
	}
	return nil
}

// claimOwner is whose MAC a claim's is: its machine's, or that of the pod that used it last.
func claimOwner(claim *ipamclaimsv1alpha1.IPAMClaim) string {
	for _, owner := range claim.OwnerReferences {
		if strings.HasPrefix(owner.Kind, "VirtualMachine") {
			return claim.Namespace + "/" + owner.Name
		}
	}
	if claim.Status.OwnerPod == nil {
		return ""
	}
	return claim.Namespace + "/" + claim.Status.OwnerPod.Name
}

// unpin lets a claim's addresses go with the last pod. It returns the network where they are free now.
func (t *tenants) unpin(holder string) (freed []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	network, known := t.claims[holder]
	delete(t.claims, holder)
	if space := t.spaces[network]; known && space != nil && space.Unpin(holder) {
		freed = append(freed, network)
	}
	return freed
}
