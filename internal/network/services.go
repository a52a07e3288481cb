package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	virtv1 "kubevirt.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/topology"
)

// byService is the index of endpoint slices by the name of their service.
const byService = "patchbay.service"

func newService() client.Object { return &corev1.Service{} }

func indexSlices(m manager.Manager) error {
	return m.GetFieldIndexer().IndexField(context.Background(), &discoveryv1.EndpointSlice{}, byService, serviceOf)
}

func serviceOf(slice client.Object) []string {
	if name := slice.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
		return []string{name}
	}
	return nil
}

func (n *Network) addServices(m manager.Manager) error {
	// Of the status only a load balancer's addresses concern us.
	relevant := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, service := e.ObjectOld.(*corev1.Service), e.ObjectNew.(*corev1.Service)
		return !equality.Semantic.DeepEqual(old.Spec, service.Spec) || !slices.Equal(balancerAddresses(old), balancerAddresses(service))
	}}
	toService := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, slice client.Object) []reconcile.Request {
		var requests []reconcile.Request
		for _, name := range serviceOf(slice) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: slice.GetNamespace(), Name: name}})
		}
		return requests
	})
	return ctrl.NewControllerManagedBy(m).Named("network-services").For(&corev1.Service{}, builder.WithPredicates(relevant)).
		Watches(&discoveryv1.EndpointSlice{}, toService).
		Watches(&virtv1.VirtualMachineInstance{}, handler.EnqueueRequestsFromMapFunc(n.servicesBeside), builder.WithPredicates(migrationEnds)).
		WatchesRawSource(n.wakeSvcs.Source()).
		WithOptions(n.options(4)).Complete(n.afterRecovery(n.reconcileService))
}

func serviceOwner(key client.ObjectKey) string { return "service/" + key.String() }

func (n *Network) reconcileService(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var service corev1.Service
	err := n.client.Get(ctx, req.NamespacedName, &service)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, err
	}
	if err != nil {
		n.Rows.Delete(serviceOwner(req.NamespacedName))
		n.book.setLocal(req.NamespacedName, false)
		if req.NamespacedName == clusterDNSKey {
			return reconcile.Result{}, n.applyClusterDNS(ctx)
		}
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, n.ensureService(ctx, &service)
}

func (n *Network) ensureService(ctx context.Context, service *corev1.Service) error {
	key := client.ObjectKeyFromObject(service)
	var endpoints discoveryv1.EndpointSliceList
	if err := n.client.List(ctx, &endpoints, client.InNamespace(key.Namespace), client.MatchingFields{byService: key.Name}); err != nil {
		return fmt.Errorf("list endpoint slices of service %s: %w", key, err)
	}
	rows, perNode, err := n.serviceRows(ctx, service, endpoints.Items)
	if err != nil {
		return err
	}
	n.book.setLocal(key, perNode)
	n.Rows.Set(serviceOwner(key), rows)
	return nil
}

// convertService turns API objects into what the topology needs. The API server has validated them.
func convertService(s *corev1.Service, endpoints []discoveryv1.EndpointSlice) topology.Service {
	out := topology.Service{
		Namespace: s.Namespace, Name: s.Name,
		AnyReadiness:  s.Spec.PublishNotReadyAddresses,
		Affinity:      s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
		InternalLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return out
	}
	out.ClusterIPs = addresses(s.Spec.ClusterIPs)
	if len(out.ClusterIPs) == 0 {
		return out // headless
	}
	out.ExternalIPs = slices.Concat(addresses(s.Spec.ExternalIPs), balancerAddresses(s))
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, topology.ServicePort{
			Protocol: strings.ToLower(string(protocolOr(p.Protocol))), Port: uint16(p.Port), Endpoints: convertEndpoints(p, endpoints),
		})
	}
	return out
}

// balancerAddresses are the addresses that pods may reach inside the overlay. Those of mode Proxy must go through the load
// balancer, and with source ranges through the node, which checks them.
func balancerAddresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(s.Spec.LoadBalancerSourceRanges) > 0 {
		return nil
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if ingress.IPMode == nil || *ingress.IPMode == corev1.LoadBalancerIPModeVIP {
			out = append(out, addresses([]string{ingress.IP})...)
		}
	}
	return out
}

// convertEndpoints finds the endpoints of one service port: slices name their ports as the service does and carry the number
// that it has there.
func convertEndpoints(port corev1.ServicePort, endpoints []discoveryv1.EndpointSlice) []topology.Endpoint {
	var out []topology.Endpoint
	for _, slice := range endpoints {
		for _, p := range slice.Ports {
			if p.Port == nil || value(p.Name) != port.Name || protocolOr(value(p.Protocol)) != protocolOr(port.Protocol) {
				continue
			}
			for _, e := range slice.Endpoints {
				for _, a := range addresses(e.Addresses) {
					out = append(out, topology.Endpoint{
						Address: netip.AddrPortFrom(a, uint16(*p.Port)), Node: value(e.NodeName), State: endpointState(e.Conditions),
					})
				}
			}
		}
	}
	return out
}

// endpointState reads an endpoint's conditions; unset means ready, serving and not terminating.
func endpointState(c discoveryv1.EndpointConditions) topology.EndpointState {
	switch {
	case c.Ready == nil || *c.Ready:
		return topology.Ready
	case (c.Serving == nil || *c.Serving) && value(c.Terminating):
		return topology.ServingTerminating
	}
	return topology.NotReady
}

func protocolOr(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// addresses are the texts that are addresses; "None" and host names are not.
func addresses(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}
