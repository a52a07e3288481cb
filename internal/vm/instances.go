package vm

import (
	"context"
	"fmt"
	"slices"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/tenancy/attachment"
	"patchbay/internal/vm/launcherpod"
	"patchbay/internal/vm/lifecycle"
)

// attachmentKind is the kind of a network attachment definition, and resourceAnnotation where one names the device that its
// users must ask a node for.
var attachmentKind = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"}

const resourceAnnotation = "k8s.v1.cni.cncf.io/resourceName"

// instances steps virtual machine instances.
type instances struct {
	cached   client.Client
	live     reader
	executor executor
	config   Config
}

func newInstances(cached client.Client, live reader, e executor, config Config) *instances {
	return &instances{cached: cached, live: live, executor: e, config: config}
}

func (i *instances) setUp(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("virtualmachineinstance").
		For(&virtv1.VirtualMachineInstance{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(ofOwner)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(instancesOf(i.cached, instancesByClaim))).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(instancesOf(i.cached, instancesByNode)), builder.WithPredicates(readinessChanges)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(i.waiting), builder.WithPredicates(serviceChanges)).
		Watches(&ipamclaimsv1alpha1.IPAMClaim{}, handler.EnqueueRequestsFromMapFunc(ofClaim), builder.WithPredicates(claimChanges)).
		Watches(&nadv1.NetworkAttachmentDefinition{}, handler.EnqueueRequestsFromMapFunc(i.waitingHere)).
		WithOptions(i.config.options()).
		Complete(i)
}

// readinessChanges lets a node through when it is lost or comes back.
var readinessChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return nodeReady(e.ObjectOld.(*corev1.Node)) != nodeReady(e.ObjectNew.(*corev1.Node))
}}

// serviceChanges lets a node through when its agent takes it into service, or is missed.
var serviceChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	return e.ObjectOld.GetLabels()[virtv1.NodeSchedulable] != e.ObjectNew.GetLabels()[virtv1.NodeSchedulable]
}}

// waiting asks for the instances that have no pod yet: they may have waited for a node.
func (i *instances) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	var list virtv1.VirtualMachineInstanceList
	if err := i.cached.List(ctx, &list, client.MatchingFields{instancesWaiting: "true"}); err != nil {
		return nil // the cache has no such index before it runs; then every instance is looked at anyway
	}
	return requestsFor(list)
}

// claimChanges lets a claim through that may be named from now on; its addresses matter to others.
var claimChanges = predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}

// ofClaim asks for the instance that a claim keeps addresses for.
func ofClaim(_ context.Context, o client.Object) []reconcile.Request {
	machine := o.GetLabels()[attachment.ClaimLabel]
	if machine == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: machine}}}
}

// waitingHere asks for the instances of an object's namespace that have no pod yet: they may have waited for the object.
func (i *instances) waitingHere(ctx context.Context, o client.Object) []reconcile.Request {
	var list virtv1.VirtualMachineInstanceList
	if err := i.cached.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{instancesWaiting: "true"}); err != nil {
		return nil // the cache has no such index before it runs; then every instance is looked at anyway
	}
	return requestsFor(list)
}

func nodeReady(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// Reconcile steps one instance.
func (i *instances) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	view, err := i.look(ctx, i.cached, req.NamespacedName)
	if err != nil || view.VMI == nil {
		return ctrl.Result{}, err
	}
	decision := lifecycle.StepVMI(view)
	if decision.Confirm {
		if view, err = i.confirm(ctx, req.NamespacedName); err != nil || view.VMI == nil {
			return ctrl.Result{}, err
		}
		decision = lifecycle.StepVMI(view)
	}
	return i.executor.decide(ctx, decision, func(a lifecycle.Action, err error) lifecycle.Decision {
		return lifecycle.VMIFailed(view, a, err)
	})
}

// look reads what is known of an instance.
func (i *instances) look(ctx context.Context, r reader, key types.NamespacedName) (lifecycle.VMIView, error) {
	view := lifecycle.VMIView{Now: i.config.Now(), Settings: i.config.settings()}
	vmi := &virtv1.VirtualMachineInstance{}
	found, err := get(ctx, r, key, vmi)
	if err != nil {
		return view, fmt.Errorf("read virtual machine instance %s: %w", key, err)
	}
	if !found {
		return view, nil
	}
	view.VMI = vmi
	if err := i.addPods(ctx, &view); err != nil {
		return view, err
	}
	if view.Claims, err = claimsOf(ctx, i.cached, key.Namespace, vmi.Spec.Volumes); err != nil {
		return view, fmt.Errorf("read claims of %s: %w", key, err)
	}
	view.Overlay, view.OverlayFault, err = i.overlay(ctx, vmi)
	if err != nil {
		return view, err
	}
	if view.Node, err = i.node(ctx, vmi.Status.NodeName); err != nil {
		return view, err
	}
	if len(view.Pods) == 0 && vmi.DeletionTimestamp == nil && !vmi.IsFinal() {
		err = i.lookAround(ctx, &view)
	} else if vmi.IsRunning() && lifecycle.Plugging(vmi) {
		view.Networks, err = i.networks(ctx, vmi)
	}
	return view, err
}

// lookAround reads what a new pod depends on.
func (i *instances) lookAround(ctx context.Context, view *lifecycle.VMIView) (err error) {
	if view.Networks, err = i.networks(ctx, view.VMI); err != nil {
		return err
	}
	var nodes corev1.NodeList
	if err := i.cached.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil { // they are large, and only looked at
		return fmt.Errorf("list nodes: %w", err)
	}
	for n := range nodes.Items {
		view.Nodes = append(view.Nodes, &nodes.Items[n])
	}
	for _, claim := range view.Claims {
		if claim.Spec.VolumeName == "" {
			continue
		}
		v := &corev1.PersistentVolume{}
		found, err := get(ctx, i.cached, types.NamespacedName{Name: claim.Spec.VolumeName}, v)
		if err != nil {
			return fmt.Errorf("read the volume of claim %s/%s: %w", claim.Namespace, claim.Name, err)
		}
		if found {
			view.Volumes = append(view.Volumes, v)
		}
	}
	return nil
}

// confirm reads the instance and its first pod from the API server itself. Other pods come from migrations, and are looked for
// where they are made.
func (i *instances) confirm(ctx context.Context, key types.NamespacedName) (lifecycle.VMIView, error) {
	view, err := i.look(ctx, i.live, key)
	if err != nil || view.VMI == nil {
		return view, err
	}
	pod := &corev1.Pod{}
	found, err := get(ctx, i.live, types.NamespacedName{Namespace: key.Namespace, Name: launcherpod.Name(view.VMI, nil)}, pod)
	if err != nil {
		return view, fmt.Errorf("read pod of %s: %w", key, err)
	}
	view.Pods = slices.DeleteFunc(view.Pods, func(p *corev1.Pod) bool { return p.Name == launcherpod.Name(view.VMI, nil) })
	if found && metav1.IsControlledBy(pod, view.VMI) {
		view.Pods = append(view.Pods, pod)
	}
	return view, nil
}

func (i *instances) addPods(ctx context.Context, view *lifecycle.VMIView) error {
	var list corev1.PodList
	err := i.cached.List(ctx, &list, client.InNamespace(view.VMI.Namespace), client.MatchingFields{podsByInstance: string(view.VMI.UID)})
	if err != nil {
		return fmt.Errorf("list pods of %s/%s: %w", view.VMI.Namespace, view.VMI.Name, err)
	}
	for n := range list.Items {
		if metav1.IsControlledBy(&list.Items[n], view.VMI) {
			view.Pods = append(view.Pods, &list.Items[n])
		}
	}
	return nil
}

// overlay says what an instance's pod asks of the overlay, or why that is not known yet.
func (i *instances) overlay(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (map[string]attachment.Request, error, error) {
	if vmi.DeletionTimestamp != nil || vmi.IsFinal() {
		return nil, nil, nil
	}
	facts, err := attachment.Look(ctx, i.cached, vmi)
	if err != nil {
		return nil, nil, err
	}
	requests, fault := facts.Requests(vmi)
	return requests, fault, nil
}

func (i *instances) node(ctx context.Context, name string) (*corev1.Node, error) {
	if name == "" {
		return nil, nil
	}
	node := &corev1.Node{}
	found, err := get(ctx, i.cached, types.NamespacedName{Name: name}, node)
	if err != nil || !found {
		return nil, err
	}
	return node, nil
}

// networks reads which attachments of an instance exist, and the devices they name. It is asked once per start, and while interfaces are plugged, so it goes to the
// API server, and keeps no copy of every attachment.
func (i *instances) networks(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (map[string]string, error) {
	found := map[string]string{}
	for _, n := range vmi.Spec.Networks {
		if n.Multus == nil {
			continue
		}
		namespace, name := launcherpod.AttachmentKey(vmi.Namespace, n.Multus.NetworkName)
		attachment := &metav1.PartialObjectMetadata{}
		attachment.SetGroupVersionKind(attachmentKind)
		ok, err := get(ctx, i.live, types.NamespacedName{Namespace: namespace, Name: name}, attachment)
		if meta.IsNoMatchError(err) {
			continue // no attachment can exist where the kind does not
		}
		if err != nil {
			return nil, fmt.Errorf("read network attachment definition %s/%s: %w", namespace, name, err)
		}
		if ok {
			found[namespace+"/"+name] = attachment.Annotations[resourceAnnotation]
		}
	}
	return found, nil
}
