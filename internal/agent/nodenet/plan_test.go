package nodenet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/agent/ovs"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
)

var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestPlan(t *testing.T) {
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	want := Plan{
		Logical: "k8s-node-1", MAC: "0a:58:0a:80:00:02", MTU: 1400,
		IPs:      prefixes("10.128.0.2/23", "fd00:10:128::2/64"),
		Gateways: addrs("10.128.0.1", "fd00:10:128::1"),
		Routes:   prefixes("10.128.0.0/14", "fd00:10:128::/48", "100.64.0.0/16", "fd98::/64", "100.65.0.0/16", "fd99::/64", "10.96.0.0/16", "fd00:10:96::/112"),
		Overlay:  prefixes("10.128.0.0/14", "fd00:10:128::/48", "100.64.0.0/16", "fd98::/64", "100.65.0.0/16", "fd99::/64"),
		Entries:  addrs("100.65.64.0", "fd99::"),
	}
	got := testPlan(t)
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	port := ovs.Port{Name: "pb-mp0", Logical: "k8s-node-1", Owner: "nodenet", Type: "internal", MAC: "0a:58:0a:80:00:02", MTU: 1400}
	if diff := cmp.Diff(port, got.port()); diff != "" {
		t.Errorf("port (-want +got):\n%s", diff)
	}
}

func TestPlanWaitsForSubnets(t *testing.T) {
	for _, value := range []string{"", `{}`, `{"red/blue":["10.0.0.0/24"]}`} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{}}}
		if value != "" {
			node.Annotations[podnetworks.NodeAnnotation] = value
		}
		if _, err := NewPlan(settings.Default(), node); !errors.Is(err, ErrNoSubnets) {
			t.Errorf("annotation %q: %v", value, err)
		}
	}
	broken := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{podnetworks.NodeAnnotation: "{"}}}
	if _, err := NewPlan(settings.Default(), broken); err == nil || errors.Is(err, ErrNoSubnets) {
		t.Errorf("broken annotation: %v", err)
	}
}

func TestPlace(t *testing.T) {
	local := []net.Addr{&net.IPNet{IP: net.ParseIP("172.30.0.11"), Mask: net.CIDRMask(24, 32)}}
	node := func(addresses ...corev1.NodeAddress) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Addresses: addresses}}
	}
	internal := func(ip string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip}
	}
	for name, c := range map[string]struct {
		node *corev1.Node
		want error
	}{
		"ours":        {node(internal("fd00::1"), internal("172.30.0.11")), nil},
		"another":     {node(internal("172.30.0.12")), ErrWrongPlace},
		"not yet":     {node(), ErrNoAddress},
		"only a name": {node(corev1.NodeAddress{Type: corev1.NodeHostName, Address: "n"}), ErrNoAddress},
	} {
		if ok, err := holdsNode(local, c.node); !errors.Is(err, c.want) || ok != (c.want == nil) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestHealthCheckNodePort(t *testing.T) {
	h := &health{log: slog.New(slog.DiscardHandler)}
	t.Cleanup(h.close)
	port := freePort(t)
	s := service{key: types.NamespacedName{Namespace: "red", Name: "web"}, healthPort: port, ports: []servicePort{{endpoints: []endpoint{
		{address: netip.MustParseAddrPort("10.128.0.5:80"), here: true, ready: true},
		{address: netip.MustParseAddrPort("[fd00::5]:80"), here: true, ready: true},
		{address: netip.MustParseAddrPort("10.128.2.5:80"), ready: true},
	}}}}
	if err := h.apply(context.Background(), []service{s}); err != nil {
		t.Fatal(err)
	}
	status, answer := ask(t, port)
	if status != http.StatusOK || answer.LocalEndpoints != 1 || answer.Service.Name != "web" || !answer.ServiceProxyHealthy {
		t.Errorf("with an endpoint: %d %+v", status, answer)
	}
	s.ports = nil
	if err := h.apply(context.Background(), []service{s}); err != nil {
		t.Fatal(err)
	}
	if status, answer := ask(t, port); status != http.StatusServiceUnavailable || answer.LocalEndpoints != 0 {
		t.Errorf("without: %d %+v", status, answer)
	}
	if err := h.apply(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil {
		t.Error("the port is served after the service is gone")
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func ask(t *testing.T, port uint16) (int, healthAnswer) {
	t.Helper()
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer healthAnswer
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}
