package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"patchbay/internal/machinepod"
	"patchbay/internal/netconf"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/topology"
)

// forTenants are the services of the default network that tenants may use: the API server and the cluster's DNS.
var forTenants = []client.ObjectKey{{Namespace: "default", Name: "kubernetes"}, clusterDNSKey}

// serviceRows are a service's rows on the network of its namespace, and nowhere else; perNode says that the list of nodes
// matters to them.
func (n *Network) serviceRows(ctx context.Context, service *corev1.Service, endpoints []discoveryv1.EndpointSlice) (rows []nb.Row, perNode bool, err error) {
	tenant, err := n.tenantNamespace(ctx, service.Namespace)
	if err != nil {
		return nil, false, err
	}
	if !tenant {
		wanted := convertService(service, endpoints)
		wanted.ForTenants = slices.Contains(forTenants, client.ObjectKeyFromObject(service)) && n.outside(wanted)
		return topology.ServiceRows(wanted, n.book.nodeNames()), wanted.InternalLocal, nil
	}
	gateway, ok := n.gateways.of(service.Namespace)
	if !ok {
		return nil, false, nil // the namespace's network comes later and wakes us
	}
	endpoints, err = n.onTenant(ctx, endpoints)
	if err != nil {
		return nil, false, err
	}
	wanted := convertService(service, endpoints)
	out := topology.TenantService{
		Service: wanted, Network: gateway.network.Name, Layer3: gateway.network.Topology == netconf.Layer3, Exposed: exposed(service, wanted),
		Transit: topology.TransitAddresses(gateway.network.ID, gateway.network.Subnets), Entry: n.book.entry(gateway.node()),
	}
	if network, ok := n.registry.network(out.Network); ok {
		for _, s := range network.Slices {
			out.Nodes = append(out.Nodes, s.Node)
		}
	}
	return topology.TenantServiceRows(out), out.Exposed || out.Layer3 && out.InternalLocal, nil
}

// outside tells whether all endpoints of a service are outside the overlay, where tenants reach them as they reach anything.
func (n *Network) outside(s topology.Service) bool {
	for _, port := range s.Ports {
		for _, e := range port.Endpoints {
			if slices.ContainsFunc(n.Settings.ClusterCIDRs, func(c netip.Prefix) bool { return c.Contains(e.Address.Addr()) }) {
				return false
			}
		}
	}
	return true
}

// exposed tells whether nodes send anything to a service.
func exposed(s *corev1.Service, wanted topology.Service) bool {
	return len(wanted.ExternalIPs) > 0 || len(s.Status.LoadBalancer.Ingress) > 0 ||
		slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 })
}

// onTenant gives endpoints the addresses that their pods have on their primary network: those that Kubernetes knows are of the
// default network. Endpoints without a pod stay; those of pods that have no such address are left out.
func (n *Network) onTenant(ctx context.Context, endpoints []discoveryv1.EndpointSlice) ([]discoveryv1.EndpointSlice, error) {
	out := make([]discoveryv1.EndpointSlice, 0, len(endpoints))
	for i := range endpoints {
		slice := endpoints[i].DeepCopy()
		var kept []discoveryv1.Endpoint
		for _, e := range slice.Endpoints {
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				known, err := n.translate(ctx, slice, &e)
				if err != nil {
					return nil, err
				}
				if !known {
					continue
				}
			}
			kept = append(kept, e)
		}
		slice.Endpoints = kept
		out = append(out, *slice)
	}
	return out, nil
}

// translate gives one endpoint its pod's address. It is false when there is none.
func (n *Network) translate(ctx context.Context, slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) (bool, error) {
	var pod corev1.Pod
	key := client.ObjectKey{Namespace: slice.Namespace, Name: e.TargetRef.Name}
	if err := n.client.Get(ctx, key, &pod); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	if pod.Spec.HostNetwork {
		return true, nil
	}
	e.Addresses = primaryAddresses(&pod, slice.AddressType == discoveryv1.AddressTypeIPv4)
	if len(e.Addresses) == 0 {
		return false, nil
	}
	moving, err := n.moving(ctx, &pod)
	if moving {
		// Both pods of a machine that moves may be unready for a moment. The machine itself runs, and without an endpoint its
		// connections would be refused.
		yes := true
		e.Conditions.Ready = &yes
	}
	return true, err
}

// primaryAddresses are a pod's addresses of one family on a tenant's network.
func primaryAddresses(pod *corev1.Pod, is4 bool) []string {
	networks, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil {
		return nil
	}
	var out []string
	for key, network := range networks {
		if key == podnetworks.Default || network.Role != podnetworks.Primary {
			continue
		}
		for _, ip := range network.IPs {
			if ip.Addr().Is4() == is4 {
				out = append(out, ip.Addr().String())
			}
		}
	}
	slices.Sort(out)
	return out
}

// moving tells whether a pod's virtual machine is being migrated.
func (n *Network) moving(ctx context.Context, pod *corev1.Pod) (bool, error) {
	name := pod.Annotations[virtv1.DomainAnnotation]
	if !machinepod.Is(pod) || name == "" {
		return false, nil
	}
	var vmi virtv1.VirtualMachineInstance
	if err := n.client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, &vmi); err != nil {
		return false, client.IgnoreNotFound(fmt.Errorf("read the machine of pod %s: %w", client.ObjectKeyFromObject(pod), err))
	}
	return migrating(&vmi), nil
}

func migrating(vmi *virtv1.VirtualMachineInstance) bool {
	m := vmi.Status.MigrationState
	return m != nil && !m.Completed && !m.Failed
}

// migrationEnds is when endpoints count by their readiness again.
var migrationEnds = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	DeleteFunc: func(event.DeleteEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		old, vmi := e.ObjectOld.(*virtv1.VirtualMachineInstance), e.ObjectNew.(*virtv1.VirtualMachineInstance)
		return migrating(old) != migrating(vmi)
	},
}

// servicesBeside are the services of an object's namespace.
func (n *Network) servicesBeside(ctx context.Context, o client.Object) []reconcile.Request {
	var services corev1.ServiceList
	if err := n.client.List(ctx, &services, client.InNamespace(o.GetNamespace())); err != nil {
		return nil // reads the cache; cannot fail once it runs
	}
	var requests []reconcile.Request
	for i := range services.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&services.Items[i])})
	}
	return requests
}
