package network

import (
	"fmt"
	"testing"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// claimed is a claim and what a pod's annotation says to use it, with wishes in JSON.
func claimed(namespace, name, network, wishes string) (*ipamclaimsv1alpha1.IPAMClaim, []string) {
	claim := &ipamclaimsv1alpha1.IPAMClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: ipamclaimsv1alpha1.IPAMClaimSpec{Network: network}}
	return claim, []string{"v1.multus-cni.io/default-network",
		fmt.Sprintf(`[{"name":"default","namespace":"ovn-kubernetes","ipam-claim-reference":%q%s}]`, name, wishes)}
}

// says waits until a claim's condition has a reason.
func (s *tenancy) says(claim *ipamclaimsv1alpha1.IPAMClaim, reason string) {
	s.t.Helper()
	s.until("claim "+claim.Name+" says "+reason, func() (bool, string) {
		var c ipamclaimsv1alpha1.IPAMClaim
		if err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(claim), &c); err != nil {
			return false, err.Error()
		}
		condition := meta.FindStatusCondition(c.Status.Conditions, "IPsAllocated")
		return condition != nil && condition.Reason == reason && (condition.Status == metav1.ConditionTrue) == (len(c.Status.IPs) > 0), fmt.Sprintf("%+v", c.Status)
	})
}

// TestAMachineWithoutAnAddressWaits: what stands in its way is told in an event and in its claim, and nobody else is disturbed.
func TestAMachineWithoutAnAddressWaits(t *testing.T) {
	s := newTenancy(t)
	s.start()
	ns := s.namespace("full", true)
	const name = "full-net"
	s.create(definition(ns, "net", name, `"topology":"layer2","role":"primary","subnets":"10.77.0.0/29","allowPersistentIPs":true`)) // four addresses beside the network's own
	boot := func(machine, wishes string) *ipamclaimsv1alpha1.IPAMClaim {
		claim, asks := claimed(ns, machine+".default", name, wishes)
		vmi := instance(ns, machine)
		s.create(claim, vmi)
		s.create(launcher(vmi, "launcher-"+machine, "node-1", "", asks...))
		return claim
	}
	first := boot("first", `,"mac":"02:00:00:00:77:01"`)
	had := s.networks(ns, "launcher-first")[ns+"/net"]
	s.says(first, claimAllocated)

	for machine, c := range map[string]struct{ wishes, event, reason string }{
		"same-ip":  {fmt.Sprintf(`,"ips":["%s"]`, had.IPs[0]), "provided IP is already allocated", claimIPConflict},
		"same-mac": {`,"mac":"02:00:00:00:77:01"`, "MAC address already in use", claimMACConflict},
		"gateway":  {`,"ips":["10.77.0.1/29"]`, "10.77.0.1", claimIPConflict},
	} {
		claim := boot(machine, c.wishes)
		s.said(ns, "launcher-"+machine, c.event)
		s.says(claim, c.reason)
		s.delete(podIn(ns, "launcher-"+machine, ""))
		s.delete(claim)
	}

	for i := range 3 {
		s.create(podIn(ns, fmt.Sprint("pod-", i), "node-2"))
		s.networks(ns, fmt.Sprint("pod-", i))
	}
	late := boot("late", "")
	s.said(ns, "launcher-late", "subnet address pool exhausted")
	s.says(late, claimExhausted)
	if now := s.networks(ns, "launcher-first")[ns+"/net"]; ips(now) != ips(had) || now.MAC.String() != had.MAC.String() {
		t.Errorf("the first machine had %+v and has %+v", had, now)
	}
	s.hasRow(s.o, "Logical_Switch_Port "+had.Port, true)
	s.delete(podIn(ns, "pod-1", ""))
	if got := s.networks(ns, "launcher-late")[ns+"/net"]; ips(got) == "" || ips(got) == ips(had) {
		t.Errorf("the machine that waited has %+v", got)
	}
	s.says(late, claimAllocated)
}
