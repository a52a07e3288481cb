package admission_test

import (
	"errors"
	"strings"
	"testing"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	"sigs.k8s.io/yaml"

	"patchbay/internal/admission"
)

func TestMultiPolicies(t *testing.T) {
	definitions := map[string]string{
		"shop/blue":   `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"blue","netAttachDefName":"shop/blue","topology":"layer2","subnets":"10.100.200.0/24"}`,
		"shop/bare":   `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"bare","netAttachDefName":"shop/bare","topology":"layer2"}`,
		"shop/main":   `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"main","netAttachDefName":"shop/main","topology":"layer2","role":"primary","subnets":"10.20.0.0/16"}`,
		"shop/bridge": `{"cniVersion":"1.0.0","type":"bridge","name":"bridge"}`,
	}
	find := func(key string) (string, error) {
		if config, ok := definitions[key]; ok {
			return config, nil
		}
		return "", errors.New("not found")
	}
	const selector, block = "{podSelector: {}}", "{ipBlock: {cidr: 10.0.0.0/8}}"
	cases := map[string]struct{ networks, peer, cause, warning string }{
		"selector where addresses are given": {"blue", selector, "", ""},
		"block where none are":               {"bare", block, "", ""},
		"selector where none are": {"blue, shop/bare", selector, "shop/bare gives no addresses, so nobody knows whose an address is and peers there can be given by ipBlock only; " +
			"write the peers as ipBlock, or give the network subnets", ""},
		"primary network":   {"main", block, "shop/main is a primary network, where a MultiNetworkPolicy is not in force; write a NetworkPolicy", ""},
		"other plugin":      {"bridge", block, "shop/bridge is a network of another CNI plugin, where no policy is in force; name networks of the overlay only", ""},
		"network to come":   {"other/later", block, "", "network attachment definition other/later is not there; the policy comes into force with it"},
		"for no network":    {"", block, "", "it is in force nowhere: name the network attachment definitions that it is for in the annotation k8s.v1.cni.cncf.io/policy-for"},
		"bad block":         {"blue", "{ipBlock: {cidr: 10.0.0.0}}", `ingress[0].from[0].ipBlock: "10.0.0.0" is not a CIDR such as 10.0.0.0/8 or fd00::/8`, ""},
		"peer that is none": {"blue", "{}", "ingress[0].from[0]: give ipBlock, podSelector or namespaceSelector", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := &multiv1beta1.MultiNetworkPolicy{}
			text := "metadata: {namespace: shop, name: p, annotations: {k8s.v1.cni.cncf.io/policy-for: '" + c.networks + "'}}\nspec: {podSelector: {}, ingress: [{from: [" + c.peer + "]}]}"
			if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
				t.Fatal(err)
			}
			causes, warnings := admission.ValidateMultiPolicy(p, find)
			got := ""
			for _, cause := range causes {
				got += cause.Message
			}
			if (c.cause == "") != (len(causes) == 0) || !strings.Contains(got, c.cause) {
				t.Errorf("refused with %q, want %q", got, c.cause)
			}
			if got := strings.Join(warnings, "; "); got != c.warning {
				t.Errorf("warned of %q, want %q", got, c.warning)
			}
		})
	}
}
