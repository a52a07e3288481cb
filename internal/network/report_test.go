package network

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/ovn"
	"patchbay/internal/settings"
)

// TestWhoIsConcernedByARefusal: the objects that learn that the database refused an owner's rows.
func TestWhoIsConcernedByARefusal(t *testing.T) {
	store := ovn.NewStore(ovn.Config{Dial: ovn.NewFake().Dial, Log: slog.New(slog.DiscardHandler)})
	n := newNetwork(nil, nil, nil, Config{Settings: settings.Default(), Rows: store})
	for _, d := range []string{"one", "two"} {
		if _, _, err := n.tenants.putDefinition(definition("shop", d, "blue", `"topology":"layer2"`)); err != nil && d == "one" {
			t.Fatal(err)
		}
	}
	cases := map[string][]string{
		"node/node-1": {"*v1.Node node-1"}, "pod/shop/web": {"*v1.Pod shop/web"}, "service/shop/web": {"*v1.Service shop/web"},
		"nic/shop/web/default":           {"*v1.VirtualMachineInstance shop/web"},
		"network/blue":                   {"*v1.NetworkAttachmentDefinition shop/one", "*v1.NetworkAttachmentDefinition shop/two"},
		"gateway/none":                   nil,
		"networkpolicy/shop/p/(default)": {"*v1.NetworkPolicy shop/p"},
		"multinetworkpolicy/shop/p/blue": {"*v1beta1.MultiNetworkPolicy shop/p"},
		"policy-group/policy_1":          nil,
		"cluster":                        nil,
	}
	for owner, want := range cases {
		var got []string
		for _, c := range n.concerned(owner) {
			key := c.key.Name
			if c.key.Namespace != "" {
				key = c.key.String()
			}
			got = append(got, fmt.Sprintf("%T %s", c.object, key))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", owner, diff)
		}
	}
}
