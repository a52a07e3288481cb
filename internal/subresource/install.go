package subresource

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/home"
)

const (
	// ServiceName is the Service through which the API server reaches the controller.
	ServiceName = "patchbay-controller"
	// fieldOwner owns what Install applies.
	fieldOwner = "patchbay-subresources"

	servicePort = 443
)

// Target says where a controller serves this API.
type Target struct {
	Address   netip.AddrPort
	Authority []byte // PEM certificates that the serving certificate, for *.patchbay-system.svc, is checked against
}

// Install registers the API with the API server: namespace, Service and endpoint of the controller, APIServices and the published
// cluster roles. Installed again it changes nothing.
func Install(ctx context.Context, c client.Client, t Target) error {
	objects := []runtime.Object{namespace(), service(), endpoint(t.Address)}
	for i, version := range versions {
		objects = append(objects, apiService(version, i, t.Authority))
	}
	objects = append(objects, roles()...)
	for _, o := range objects {
		if err := applyObject(ctx, c, o); err != nil {
			return fmt.Errorf("register %s: %w", Group, err)
		}
	}
	return nil
}

// applyObject sends an object's own fields by server-side apply. The typed form would also claim empty fields.
func applyObject(ctx context.Context, c client.Client, object runtime.Object) error {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return err
	}
	delete(fields, "status")
	u := &unstructured.Unstructured{Object: fields}
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldOwner), client.ForceOwnership); err != nil {
		return fmt.Errorf("apply %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}

func typeMeta(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

func namespace() *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: metav1.ObjectMeta{Name: home.Namespace}}
}

// service has no selector: where the controller is not a pod, its endpoint is written by hand.
func service() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   typeMeta("v1", "Service"),
		ObjectMeta: metav1.ObjectMeta{Name: ServiceName, Namespace: home.Namespace},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: servicePort}}},
	}
}

func endpoint(a netip.AddrPort) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if a.Addr().Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	name, protocol, port, ready := "https", corev1.ProtocolTCP, int32(a.Port()), true
	return &discoveryv1.EndpointSlice{
		TypeMeta: typeMeta("discovery.k8s.io/v1", "EndpointSlice"),
		ObjectMeta: metav1.ObjectMeta{Name: ServiceName, Namespace: home.Namespace, Labels: map[string]string{
			discoveryv1.LabelServiceName: ServiceName, discoveryv1.LabelManagedBy: fieldOwner,
		}},
		AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{a.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
}

func apiService(version string, rank int, authority []byte) *apiregistrationv1.APIService {
	port := int32(servicePort)
	return &apiregistrationv1.APIService{
		TypeMeta:   typeMeta("apiregistration.k8s.io/v1", "APIService"),
		ObjectMeta: metav1.ObjectMeta{Name: version + "." + Group},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: Group, Version: version, CABundle: authority,
			GroupPriorityMinimum: 1000, VersionPriority: int32(15 - rank),
			Service: &apiregistrationv1.ServiceReference{Namespace: home.Namespace, Name: ServiceName, Port: &port},
		},
	}
}

// roles are the published cluster roles; those for people aggregate into the roles that every namespace knows.
func roles() []runtime.Object {
	edit := append(verbRules(func(a access) bool { return a == forEditors || a == forViewers }), objectRules(everything...)...)
	edit = append(edit, rbacv1.PolicyRule{APIGroups: []string{Group}, Resources: []string{"expand-vm-spec"}, Verbs: []string{"update"}})
	view := append(verbRules(func(a access) bool { return a == forViewers }), objectRules("get", "list", "watch")...)
	everyone := verbRules(func(a access) bool { return a == forEveryone })
	for i := range everyone { // the API server takes a GET without a name for a list
		everyone[i].Verbs = append(everyone[i].Verbs, "list")
	}
	migrate := append(verbRules(func(a access) bool { return a == forMigrators }), rbacv1.PolicyRule{
		APIGroups: []string{"kubevirt.io"}, Resources: []string{"virtualmachineinstancemigrations"},
		Verbs: everything,
	})
	return []runtime.Object{
		role("kubevirt.io:admin", "admin", edit), role("kubevirt.io:edit", "edit", edit), role("kubevirt.io:view", "view", view),
		role("kubevirt.io:migrate", "", migrate), role("kubevirt.io:default", "", everyone), everyoneBinding(),
	}
}

var everything = []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}

// objectRules are the rights on the objects themselves. Migrations are only read: moving other tenants' load is the
// administrator's business.
func objectRules(verbs ...string) []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{"kubevirt.io"}, Resources: []string{machines, instances}, Verbs: verbs},
		{APIGroups: []string{"kubevirt.io"}, Resources: []string{"virtualmachineinstancemigrations"}, Verbs: []string{"get", "list", "watch"}},
	}
}

func verbRules(match func(access) bool) []rbacv1.PolicyRule {
	byAction := map[string][]string{}
	for _, v := range distinct() {
		if match(v.access) {
			byAction[v.action()] = append(byAction[v.action()], v.rbacResources()...)
		}
	}
	var rules []rbacv1.PolicyRule
	for _, action := range []string{"get", "update"} {
		if names := byAction[action]; len(names) > 0 {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{Group}, Resources: names, Verbs: []string{action}})
		}
	}
	return rules
}

func role(name, into string, rules []rbacv1.PolicyRule) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{TypeMeta: typeMeta("rbac.authorization.k8s.io/v1", "ClusterRole"), ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	if into != "" {
		r.Labels = map[string]string{"rbac.authorization.k8s.io/aggregate-to-" + into: "true"}
	}
	return r
}

func everyoneBinding() *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta:   typeMeta("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
		ObjectMeta: metav1.ObjectMeta{Name: "kubevirt.io:default"},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "kubevirt.io:default"},
		Subjects:   []rbacv1.Subject{{APIGroup: "rbac.authorization.k8s.io", Kind: "Group", Name: "system:authenticated"}},
	}
}
