package tenancy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/tenancy/attachment"
)

// addClaims adds the controller of the claims that keep the addresses of machines. Its keys are names of machines.
func (t *Tenancy) addClaims(m manager.Manager) error {
	ofSameName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{request(o.GetNamespace(), o.GetName())}
	})
	return ctrl.NewControllerManagedBy(m).Named("ipamclaim").For(&virtv1.VirtualMachineInstance{}).
		Watches(&virtv1.VirtualMachine{}, ofSameName).
		Watches(&ipamclaimsv1alpha1.IPAMClaim{}, handler.EnqueueRequestsFromMapFunc(t.machinesOf)).
		Watches(newDefinition(), handler.EnqueueRequestsFromMapFunc(t.instancesOn)).
		Complete(reconcile.Func(t.reconcileClaims))
}

// machinesOf asks for a claim's machine; for a claim of somebody else, for the instances that may have waited for its name.
func (t *Tenancy) machinesOf(ctx context.Context, claim client.Object) []reconcile.Request {
	if machine := claim.GetLabels()[attachment.ClaimLabel]; machine != "" {
		return []reconcile.Request{request(claim.GetNamespace(), machine)}
	}
	var list virtv1.VirtualMachineInstanceList
	if err := t.client.List(ctx, &list, client.InNamespace(claim.GetNamespace())); err != nil {
		return nil // the cache is not there yet; then every instance is looked at anyway
	}
	var requests []reconcile.Request
	for _, vmi := range list.Items {
		if strings.HasPrefix(claim.GetName(), vmi.Name+".") {
			requests = append(requests, request(vmi.Namespace, vmi.Name))
		}
	}
	return requests
}

// instancesOn asks for the instances that may be on a definition: those that name it, and those on the primary network of its
// namespace.
func (t *Tenancy) instancesOn(ctx context.Context, o client.Object) []reconcile.Request {
	var list virtv1.VirtualMachineInstanceList
	if err := t.client.List(ctx, &list, client.MatchingFields{instancesByNetwork: client.ObjectKeyFromObject(o).String()}); err != nil {
		return nil // the cache is not there yet; then every instance is looked at anyway
	}
	var here virtv1.VirtualMachineInstanceList
	if err := t.client.List(ctx, &here, client.MatchingFields{instancesByNetwork: onPodNetwork(o.GetNamespace())}); err != nil {
		return nil
	}
	var requests []reconcile.Request
	for _, vmi := range append(list.Items, here.Items...) {
		requests = append(requests, request(vmi.Namespace, vmi.Name))
	}
	return requests
}

// networksOf are the definitions that an instance names, and the pod network of its namespace.
func networksOf(o client.Object) []string {
	vmi := o.(*virtv1.VirtualMachineInstance)
	keys := attachment.Definitions(vmi)
	for _, n := range vmi.Spec.Networks {
		if n.Pod != nil {
			keys = append(keys, onPodNetwork(vmi.Namespace))
		}
	}
	return keys
}

// onPodNetwork is the key of the instances on the pod network of a namespace; no definition has a name like it.
func onPodNetwork(namespace string) string { return namespace + "/" }

func (t *Tenancy) reconcileClaims(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	vmi := &virtv1.VirtualMachineInstance{}
	err := t.client.Get(ctx, req.NamespacedName, vmi)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	if err == nil && vmi.DeletionTimestamp == nil && !vmi.IsFinal() {
		if err := t.ensureClaims(ctx, vmi); err != nil {
			return reconcile.Result{}, stale(err)
		}
	}
	return reconcile.Result{}, stale(t.releaseClaims(ctx, req.NamespacedName))
}

// ensureClaims makes the claims that an instance's pod is to name.
func (t *Tenancy) ensureClaims(ctx context.Context, vmi *virtv1.VirtualMachineInstance) error {
	facts, err := attachment.Look(ctx, t.client, vmi)
	if err != nil {
		return err
	}
	attachments, err := facts.Attachments(vmi)
	if err != nil {
		return nil // the instance says so itself, and its namespace's definitions wake us
	}
	var errs []error
	for _, a := range attachments {
		if a.Network.Persistent {
			errs = append(errs, t.ensureClaim(ctx, attachment.Claim(vmi, a), facts))
		}
	}
	return errors.Join(errs...)
}

func (t *Tenancy) ensureClaim(ctx context.Context, wanted *ipamclaimsv1alpha1.IPAMClaim, facts attachment.Facts) error {
	existing, ok := facts.Claims[wanted.Name]
	switch {
	case !ok:
		err := t.client.Create(ctx, wanted)
		if apierrors.IsAlreadyExists(err) {
			return nil // the cache is late; its event comes
		}
		if err != nil {
			return fmt.Errorf("make IPAMClaim %s: %w", client.ObjectKeyFromObject(wanted), err)
		}
		slog.InfoContext(ctx, "IPAMClaim made", "claim", client.ObjectKeyFromObject(wanted), "network", wanted.Spec.Network)
		return nil
	case attachment.Owned(existing, wanted) != nil || existing.DeletionTimestamp != nil:
		return nil // it goes, or is not ours; the instance says so
	case existing.Spec.Network != wanted.Spec.Network:
		return t.release(ctx, existing.DeepCopy()) // the machine moved to another network; nothing keeps its old addresses
	}
	return nil
}

// releaseClaims lets the claims of a machine go that nobody needs any more.
func (t *Tenancy) releaseClaims(ctx context.Context, machine types.NamespacedName) error {
	var claims ipamclaimsv1alpha1.IPAMClaimList
	if err := t.client.List(ctx, &claims, client.InNamespace(machine.Namespace), client.MatchingLabels{attachment.ClaimLabel: machine.Name}); err != nil {
		return fmt.Errorf("list the IPAMClaims of %s: %w", machine, err)
	}
	if len(claims.Items) == 0 {
		return nil
	}
	owners, err := t.owners(ctx, t.client, machine)
	if err != nil {
		return err
	}
	for i := range claims.Items {
		claim := &claims.Items[i]
		if !controllerutil.ContainsFinalizer(claim, attachment.ClaimFinalizer) || owners.need(claim) {
			continue
		}
		if owners, err = t.owners(ctx, t.live, machine); err != nil {
			return err
		}
		if !owners.need(claim) {
			if err := t.letGo(ctx, claim, owners); err != nil {
				return err
			}
		}
	}
	return nil
}

// owners are the machine and the instance of one name, nil where there is none.
type owners struct {
	vm  *virtv1.VirtualMachine
	vmi *virtv1.VirtualMachineInstance
}

func (t *Tenancy) owners(ctx context.Context, r client.Reader, machine types.NamespacedName) (owners, error) {
	o := owners{vm: &virtv1.VirtualMachine{}, vmi: &virtv1.VirtualMachineInstance{}}
	if err := r.Get(ctx, machine, o.vm); apierrors.IsNotFound(err) {
		o.vm = nil
	} else if err != nil {
		return o, fmt.Errorf("read virtual machine %s: %w", machine, err)
	}
	if err := r.Get(ctx, machine, o.vmi); apierrors.IsNotFound(err) {
		o.vmi = nil
	} else if err != nil {
		return o, fmt.Errorf("read virtual machine instance %s: %w", machine, err)
	}
	return o, nil
}

// need tells whether a claim's addresses must not be given to others: its machine stays, or its guest may still run.
func (o owners) need(claim *ipamclaimsv1alpha1.IPAMClaim) bool {
	if len(claim.OwnerReferences) != 1 {
		return true // not as we make them
	}
	uid := claim.OwnerReferences[0].UID
	if o.vmi != nil {
		vm := metav1.GetControllerOf(o.vmi)
		if o.vmi.UID == uid || vm != nil && vm.UID == uid {
			return claim.DeletionTimestamp == nil || !waiting(o.vmi)
		}
	}
	return o.keeps(uid) && claim.DeletionTimestamp == nil
}

// keeps tells whether the machine with this UID stays.
func (o owners) keeps(uid types.UID) bool {
	return o.vm != nil && o.vm.UID == uid && o.vm.DeletionTimestamp == nil
}

// waiting tells whether an instance has no pod yet.
func waiting(vmi *virtv1.VirtualMachineInstance) bool {
	return vmi.DeletionTimestamp == nil && (vmi.Status.Phase == virtv1.VmPhaseUnset || vmi.Status.Phase == virtv1.Pending)
}

// letGo takes our finalizer off a claim. One whose owner is gone for good does not wait for the garbage collector: a machine of
// the same name may wait for it.
func (t *Tenancy) letGo(ctx context.Context, claim *ipamclaimsv1alpha1.IPAMClaim, o owners) error {
	if o.vm != nil && o.vm.UID == claim.OwnerReferences[0].UID {
		return t.unprotect(ctx, claim)
	}
	return t.release(ctx, claim)
}

func (t *Tenancy) unprotect(ctx context.Context, claim *ipamclaimsv1alpha1.IPAMClaim) error {
	before := claim.DeepCopy()
	if !controllerutil.RemoveFinalizer(claim, attachment.ClaimFinalizer) {
		return nil
	}
	err := t.client.Patch(ctx, claim, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("release IPAMClaim %s: %w", client.ObjectKeyFromObject(claim), err)
	}
	slog.InfoContext(ctx, "IPAMClaim released", "claim", client.ObjectKeyFromObject(claim))
	return nil
}

func (t *Tenancy) release(ctx context.Context, claim *ipamclaimsv1alpha1.IPAMClaim) error {
	if err := t.unprotect(ctx, claim); err != nil || claim.DeletionTimestamp != nil {
		return err
	}
	err := t.client.Delete(ctx, claim, client.Preconditions(metav1.Preconditions{UID: &claim.UID}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete IPAMClaim %s: %w", client.ObjectKeyFromObject(claim), err)
	}
	return nil
}
