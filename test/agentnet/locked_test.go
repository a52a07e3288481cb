package agentnet

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"patchbay/internal/agent/netns"
	"patchbay/internal/podnetworks"
)

// TestLockedLegIsOpenToTheNodesOwnServicesOnly: the kubelet reaches it, other processes of the node and what the node forwards
// do not.
func TestLockedLegIsOpenToTheNodesOwnServicesOnly(t *testing.T) {
	b := newBench(t)
	p := newPod(t, b.kube)
	b.add(t, p)
	leg := p.network
	leg.Role = podnetworks.InfrastructureLocal
	annotation, err := podnetworks.FormatPod(map[string]podnetworks.Network{podnetworks.Default: leg})
	must(t, err)
	standNetwork(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "red", Name: p.name, Annotations: map[string]string{podnetworks.PodAnnotation: annotation},
	}})
	for _, ip := range []netip.Addr{p.ip, p.ip6} {
		server := serve(t, p.netns, netip.AddrPortFrom(ip, 0))
		if got := call(t, netns.Own, server.address); got == "" {
			t.Errorf("%s: root on the node is not answered", ip)
		}
		if err := connectAsNobody(server.address); err == nil {
			t.Errorf("%s: another user's process on the node reached the leg", ip)
		}
		via := map[bool]netip.Addr{true: nodeIP.Addr(), false: nodeIP6.Addr()}[ip.Is4()]
		if _, err := in(lab.outside, "ip", "route", "replace", ip.String(), "via", via.String()); err != nil {
			t.Fatal(err)
		}
		if got, err := tryCall(lab.outside, server.address); err == nil {
			t.Errorf("%s: the outside reached the leg through the node and is seen as %q", ip, got)
		}
	}
}

// connectAsNobody tries from the node as a user without rights.
func connectAsNobody(to netip.AddrPort) error {
	script := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", to.Addr(), to.Port())
	return exec.Command("setpriv", "--reuid=65534", "--clear-groups", "timeout", "2", "bash", "-c", script).Run()
}
