package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/netconf"
	"patchbay/internal/netpolicy"
	"patchbay/internal/network/policy"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

// newEnforcer knows the default network, where nodes reach their own pods whatever policies say.
func newEnforcer(rows Rows, s settings.Settings) *policy.Enforcer {
	e := policy.New(rows, s.ControlPlane)
	e.SetNetwork(policy.Network{Services: true, Addresses: true})
	return e
}

func newPolicy() client.Object      { return &networkingv1.NetworkPolicy{} }
func newMultiPolicy() client.Object { return &multiv1beta1.MultiNetworkPolicy{} }

func (n *Network) addPolicies(m manager.Manager) error {
	n.networkWatchers = append(n.networkWatchers, n.networkForPolicies)
	specs := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))
	err := ctrl.NewControllerManagedBy(m).Named("network-policies").For(&networkingv1.NetworkPolicy{}, specs).
		WithOptions(n.options(1)).Complete(n.afterRecovery(n.reconcilePolicy))
	if err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(m).Named("network-multi-policies").For(&multiv1beta1.MultiNetworkPolicy{}, specs).
		WatchesRawSource(n.wakePolicies.Source()).
		WithOptions(n.options(1)).Complete(n.afterRecovery(n.reconcileMultiPolicy))
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).Named("network-namespaces").For(&corev1.Namespace{}, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(n.options(1)).Complete(n.afterRecovery(n.reconcileNamespace))
}

func (n *Network) reconcileNamespace(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var namespace corev1.Namespace
	err := n.client.Get(ctx, req.NamespacedName, &namespace)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	n.enforcer.SetNamespace(req.Name, namespace.Labels)
	return reconcile.Result{}, nil
}

func (n *Network) reconcilePolicy(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var p networkingv1.NetworkPolicy
	err := n.client.Get(ctx, req.NamespacedName, &p)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	if err != nil {
		n.enforcer.RemovePolicy(policyKey(netpolicy.Plain, req.NamespacedName))
		return reconcile.Result{}, nil
	}
	n.setPolicy(&p)
	return reconcile.Result{}, nil
}

func policyKey(kind string, key client.ObjectKey) netpolicy.Key {
	return netpolicy.Key{Kind: kind, Namespace: key.Namespace, Name: key.Name}
}

func (n *Network) setPolicy(p *networkingv1.NetworkPolicy) {
	parsed, err := netpolicy.Parse(policyKey(netpolicy.Plain, client.ObjectKeyFromObject(p)), nil, p.Spec)
	n.enforcer.SetPolicy(parsed)
	n.tellPolicy(p, err)
}

// tellPolicy says what of a policy is not in force. Each kind of problem has a reason, and one event, of its own: of events with one
// reason users see the first for some minutes.
func (n *Network) tellPolicy(object client.Object, problems ...error) {
	texts := map[string][]string{}
	for _, err := range problems {
		reason := reasonPolicy
		switch {
		case err == nil:
			continue
		case errors.Is(err, netpolicy.ErrMissing):
			reason = reasonPolicyWaits
		case errors.Is(err, netpolicy.ErrSelectors):
			reason = reasonPolicySelectors
		}
		texts[reason] = append(texts[reason], err.Error())
	}
	for reason, all := range texts {
		n.events.Eventf(object, nil, "Warning", reason, "Enforce", "%s", strings.Join(all, "; "))
	}
}

func (n *Network) reconcileMultiPolicy(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var p multiv1beta1.MultiNetworkPolicy
	err := n.client.Get(ctx, req.NamespacedName, &p)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	key := policyKey(netpolicy.Multi, req.NamespacedName)
	if err != nil {
		n.enforcer.RemovePolicy(key)
		n.multiPolicies.remove(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, n.setMultiPolicy(&p)
}

func (n *Network) setMultiPolicy(p *multiv1beta1.MultiNetworkPolicy) error {
	key := client.ObjectKeyFromObject(p)
	n.multiPolicies.add(key)
	spec, err := netpolicy.PlainSpec(p)
	if err != nil {
		return err
	}
	networks, problems := n.networksOf(p, spec)
	parsed, err := netpolicy.Parse(policyKey(netpolicy.Multi, key), networks, spec)
	n.enforcer.SetPolicy(parsed)
	n.tellPolicy(p, append(problems, err)...)
	return nil
}

// networksOf are the networks that a policy is for, with why it is not in force on others that it names.
func (n *Network) networksOf(p *multiv1beta1.MultiNetworkPolicy, spec networkingv1.NetworkPolicySpec) (networks []string, problems []error) {
	keys := netpolicy.For(p.Namespace, p.Annotations)
	if len(keys) == 0 {
		return nil, []error{netpolicy.ErrNowhere}
	}
	for _, key := range keys {
		network, err := n.tenants.definition(key)
		if err == nil {
			err = netpolicy.CheckNetwork(key, network, spec)
		}
		if err != nil {
			problems = append(problems, err)
		}
		if err == nil || errors.Is(err, netpolicy.ErrSelectors) {
			networks = append(networks, network.Name)
		}
	}
	slices.Sort(networks)
	return slices.Compact(networks), problems
}

// definition is the network that a definition means.
func (t *tenants) definition(key string) (netconf.Network, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d, known := t.catalog.Definition(key)
	if !known {
		return netconf.Network{}, netpolicy.Missing(key)
	}
	if d.Err != nil {
		return netconf.Network{}, fmt.Errorf("no policy can be in force on network attachment definition %s: %w", key, d.Err)
	}
	return d.Network, nil
}

// networkForPolicies is told of every network that is new, has changed or is gone.
func (n *Network) networkForPolicies(name string) {
	network, exists := n.tenants.network(name)
	if !exists {
		n.enforcer.RemoveNetwork(name)
	} else {
		n.enforcer.SetNetwork(policy.Network{
			Name: name, Services: network.HasRouter(), Addresses: len(network.Subnets) > 0, Nodes: network.Management,
		})
	}
	n.wakePolicies.Wake(n.multiPolicies.all()...)
}

// recoverPolicies knows all policies before any port is there that they select.
func (n *Network) recoverPolicies(ctx context.Context) error {
	var namespaces corev1.NamespaceList
	var plain networkingv1.NetworkPolicyList
	var multi multiv1beta1.MultiNetworkPolicyList
	for what, list := range map[string]client.ObjectList{"namespaces": &namespaces, "network policies": &plain, "multi network policies": &multi} {
		if err := n.live.List(ctx, list); err != nil {
			return fmt.Errorf("list %s: %w", what, err)
		}
	}
	for i := range namespaces.Items {
		n.enforcer.SetNamespace(namespaces.Items[i].Name, namespaces.Items[i].Labels)
	}
	for i := range plain.Items {
		n.setPolicy(&plain.Items[i])
	}
	for i := range multi.Items {
		if err := n.setMultiPolicy(&multi.Items[i]); err != nil {
			n.Log.Error("policy cannot be restored", "policy", client.ObjectKeyFromObject(&multi.Items[i]), "error", err)
		}
	}
	return nil
}

// holdPod tells the policies of a pod's ports, before they are made. A leg that is locked anyway is not among them.
func (n *Network) holdPod(pod *corev1.Pod, network podnetworks.Network) {
	key := client.ObjectKeyFromObject(pod)
	member := memberOf(pod)
	n.tenants.describe(pod, member)
	var ports []policy.Port
	if network.Role == podnetworks.Primary {
		own := member
		own.Name, own.Primary = topology.PodPort(pod.Namespace, pod.Name), true
		ports = append(ports, own)
	}
	for _, a := range n.tenants.attachments(pod) {
		if a.NIC != "" {
			continue // the machine's
		}
		own := member
		own.Name, own.Network, own.Primary = topology.AttachmentPort(a.Key, pod.Namespace, pod.Name), a.Network, a.Role == podnetworks.Primary
		ports = append(ports, own)
	}
	n.enforcer.SetPorts(podOwner(key), ports)
}

// memberOf is what policies see of a pod, whatever its ports are.
func memberOf(pod *corev1.Pod) policy.Port {
	return policy.Port{Namespace: pod.Namespace, Labels: pod.Labels, Named: namedPorts(pod)}
}

// namedPorts are the names that a pod's containers give to numbers.
func namedPorts(pod *corev1.Pod) []policy.NamedPort {
	var out []policy.NamedPort
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.Name != "" {
					out = append(out, policy.NamedPort{Name: p.Name, Protocol: strings.ToLower(string(protocolOr(p.Protocol))), Number: uint16(p.ContainerPort)})
				}
			}
		}
	}
	return out
}

func machineOwner(machine client.ObjectKey) string { return "machine/" + machine.String() }

// holdMachine tells the policies of the ports that belong to a machine. Its labels are those of its launcher; while it moves, of the
// one that it leaves.
func (n *Network) holdMachine(machine client.ObjectKey, vmi *virtv1.VirtualMachineInstance, nics []topology.NIC) {
	member := n.tenants.launcher(machine, vmi)
	var ports []policy.Port
	for _, nic := range nics {
		own := member
		own.Name, own.Network = topology.NICPort(machine.Namespace, machine.Name, nic.Name), nic.Network.Name
		own.Namespace, own.Primary = machine.Namespace, nic.Network.Role == podnetworks.Primary
		ports = append(ports, own)
	}
	slices.SortFunc(ports, func(a, b policy.Port) int { return strings.Compare(a.Name, b.Name) })
	n.enforcer.SetPorts(machineOwner(machine), ports)
}

// describe remembers what policies see of a pod, whose labels may change.
func (t *tenants) describe(pod *corev1.Pod, as policy.Port) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.attached[client.ObjectKeyFromObject(pod)]; p != nil && p.uid == pod.UID {
		p.member = as
	}
}

// launcher is what policies see of the pod that a machine runs in.
func (t *tenants) launcher(machine client.ObjectKey, vmi *virtv1.VirtualMachineInstance) policy.Port {
	t.mu.Lock()
	defer t.mu.Unlock()
	pods := t.podsOf(machine, vmi)
	if len(pods) == 0 {
		return policy.Port{}
	}
	return t.attached[pods[0]].member
}
