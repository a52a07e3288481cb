package dns

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// objects are what the API server of the tests holds, by path.
func objects() map[string][]runtime.Object {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "red", Name: name, ResourceVersion: "1"}
	}
	core := metav1.TypeMeta{APIVersion: "v1"}
	kind := func(k string) metav1.TypeMeta { t := core; t.Kind = k; return t }
	slice := func(service, name string, family discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		m := meta(name)
		m.Labels = map[string]string{discoveryv1.LabelServiceName: service}
		port, protocol, portName := int32(5432), corev1.ProtocolTCP, "sql"
		return &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: m,
			AddressType: family, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}}}
	}
	endpoint := func(host, ip string) discoveryv1.Endpoint {
		ready := true
		return discoveryv1.Endpoint{Addresses: []string{ip}, Hostname: &host, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	}
	return map[string][]runtime.Object{
		"/api/v1/namespaces": {&corev1.Namespace{TypeMeta: kind("Namespace"), ObjectMeta: metav1.ObjectMeta{Name: "red", ResourceVersion: "1"}}},
		"/api/v1/pods": {&corev1.Pod{TypeMeta: kind("Pod"), ObjectMeta: meta("db-0"), Status: corev1.PodStatus{
			PodIP: "10.128.0.5", PodIPs: []corev1.PodIP{{IP: "10.128.0.5"}, {IP: "fd00:10:128::5"}}}},
			tenantPod(kind("Pod"), meta("own-0"))},
		"/api/v1/services": {
			&corev1.Service{TypeMeta: kind("Service"), ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.1.2", ClusterIPs: []string{"10.96.1.2", "fd00:10:96::12"},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}},
			&corev1.Service{TypeMeta: kind("Service"), ObjectMeta: meta("own"), Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}}},
			&corev1.Service{TypeMeta: kind("Service"), ObjectMeta: meta("db"), Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}}},
		},
		"/apis/discovery.k8s.io/v1/endpointslices": {
			slice("own", "own-4", discoveryv1.AddressTypeIPv4, endpoint("own-0", "10.128.0.7")),
			slice("own", "own-6", discoveryv1.AddressTypeIPv6, endpoint("own-0", "fd00:10:128::7")),
			slice("db", "db-4", discoveryv1.AddressTypeIPv4, endpoint("db-0", "10.128.0.5"), endpoint("db-1", "10.128.2.6")),
			slice("db", "db-6", discoveryv1.AddressTypeIPv6, endpoint("db-0", "fd00:10:128::5")),
		},
	}
}

// tenantPod is a pod whose primary network is a tenant's, of IPv4 only.
func tenantPod(kind metav1.TypeMeta, meta metav1.ObjectMeta) *corev1.Pod {
	meta.Annotations = map[string]string{"k8s.ovn.org/pod-networks": `{
		"default": {"ip_addresses": ["10.128.0.7/23", "fd00:10:128::7/64"], "mac_address": "0a:58:0a:80:00:07", "role": "infrastructure-locked"},
		"red/net": {"ip_addresses": ["10.20.0.7/16"], "mac_address": "0a:58:0a:14:00:07", "role": "primary"}}`}
	return &corev1.Pod{TypeMeta: kind, ObjectMeta: meta, Status: corev1.PodStatus{PodIP: "10.128.0.7", PodIPs: []corev1.PodIP{{IP: "10.128.0.7"}, {IP: "fd00:10:128::7"}}}}
}

// startAPI serves the objects by list and watch, and returns a kubeconfig for it.
func startAPI(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	for path, list := range objects() {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Query().Get("watch") == "" {
				_ = json.NewEncoder(w).Encode(listOf(list))
				return
			}
			watch(w, r, list)
		})
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.CloseClientConnections)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"users":[{"name":"u","user":{}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func listOf(items []runtime.Object) map[string]any {
	kind := items[0].GetObjectKind().GroupVersionKind()
	return map[string]any{"apiVersion": kind.GroupVersion().String(), "kind": kind.Kind + "List",
		"metadata": map[string]string{"resourceVersion": "1"}, "items": items}
}

// watch sends what there is when it is asked for it, and then nothing more.
func watch(w http.ResponseWriter, r *http.Request, items []runtime.Object) {
	send := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, item := range items {
			send("ADDED", item)
		}
		kind := items[0].GetObjectKind().GroupVersionKind()
		send("BOOKMARK", map[string]any{"apiVersion": kind.GroupVersion().String(), "kind": kind.Kind,
			"metadata": map[string]any{"resourceVersion": "1", "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}
