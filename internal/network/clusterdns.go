package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/settings"
)

const (
	clusterDNSName = "kube-dns"
	fieldOwner     = client.FieldOwner("patchbay-network")
)

var clusterDNSKey = client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: clusterDNSName}

// applyClusterDNS makes the service of the cluster's DNS, whose servers run beside the control plane and not in pods.
func (n *Network) applyClusterDNS(ctx context.Context) error {
	for _, object := range clusterDNS(n.Settings) {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return err
		}
		delete(content, "status")
		u := &unstructured.Unstructured{Object: content}
		if err := n.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldOwner, client.ForceOwnership); err != nil {
			return fmt.Errorf("apply %s %s/%s: %w", u.GetKind(), metav1.NamespaceSystem, u.GetName(), err)
		}
	}
	return nil
}

// clusterDNS are the service and one endpoint slice per family.
func clusterDNS(s settings.Settings) []runtime.Object {
	objects := []runtime.Object{clusterDNSService(s)}
	for _, ip := range s.ClusterDNS {
		if slice := clusterDNSEndpoints(s, ip.Is4()); len(slice.Endpoints) > 0 {
			objects = append(objects, slice)
		}
	}
	return objects
}

var clusterDNSPorts = []corev1.ServicePort{
	{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
	{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
}

func clusterDNSService(s settings.Settings) *corev1.Service {
	policy := corev1.IPFamilyPolicySingleStack
	if len(s.ClusterDNS) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	service := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: clusterDNSName,
			Labels: map[string]string{"k8s-app": clusterDNSName, "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &policy, Ports: clusterDNSPorts},
	}
	for _, ip := range s.ClusterDNS {
		service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, ip.String())
		service.Spec.IPFamilies = append(service.Spec.IPFamilies, ipFamily(ip.Is4()))
	}
	service.Spec.ClusterIP = service.Spec.ClusterIPs[0]
	return service
}

func ipFamily(is4 bool) corev1.IPFamily {
	if is4 {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func clusterDNSEndpoints(s settings.Settings, is4 bool) *discoveryv1.EndpointSlice {
	family := ipFamily(is4)
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: clusterDNSName + "-" + strings.ToLower(string(family)),
			Labels: map[string]string{discoveryv1.LabelServiceName: clusterDNSName, discoveryv1.LabelManagedBy: "network.patchbay.io"},
		},
		AddressType: discoveryv1.AddressType(family),
	}
	for _, p := range clusterDNSPorts {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &p.Port})
	}
	for _, a := range s.ControlPlane {
		if a.Is4() == is4 {
			slice.Endpoints = append(slice.Endpoints, readyEndpoint(a))
		}
	}
	return slice
}

func readyEndpoint(a netip.Addr) discoveryv1.Endpoint {
	ready := true
	return discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
}
