package topology

import (
	"net/netip"
	"strings"
	"testing"

	"patchbay/internal/netpolicy"
	"patchbay/internal/ovn/nb"
)

func block(cidr string, except ...string) netpolicy.Block {
	return netpolicy.Block{CIDR: netip.MustParsePrefix(cidr), Except: prefixes(except...)}
}

func policies() map[string]Policy {
	web := PolicyGroup{Network: "blue", Selects: "pods app=web of namespace shop"}
	db := PolicyGroup{Network: "blue", Selects: "pods app=db of all namespaces"}
	policy := func(ingress, egress []PolicyRule) Policy {
		return Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "p", Network: "blue", Ingress: ingress, Egress: egress}
	}
	ports := []netpolicy.Range{{Protocol: "tcp", First: 80, Last: 80}, {Protocol: "tcp", First: 443, Last: 443}, {Protocol: "tcp", First: 8000, Last: 8100}, {Protocol: "udp", First: 53, Last: 53}, {Protocol: "sctp", First: 0, Last: 0}, {Protocol: "tcp", First: 80, Last: 80}}
	return map[string]Policy{
		"nobody":          policy([]PolicyRule{{Name: "0", Target: web}}, nil),
		"anyone":          policy([]PolicyRule{{Name: "0", Target: web, Anyone: true}}, []PolicyRule{{Name: "0", Target: web, Anyone: true}}),
		"groups":          policy([]PolicyRule{{Name: "0", Target: web, Groups: []PolicyGroup{web, db}}}, []PolicyRule{{Name: "0", Target: web, Groups: []PolicyGroup{db}}}),
		"ports":           policy([]PolicyRule{{Name: "0", Target: web, Groups: []PolicyGroup{db}, Ports: ports}}, []PolicyRule{{Name: "0", Target: web, Anyone: true, Ports: ports[:2]}}),
		"every number":    policy([]PolicyRule{{Name: "0", Target: web, Anyone: true, Ports: []netpolicy.Range{{Protocol: "tcp", First: 80, Last: 80}, {Protocol: "tcp", First: 0, Last: 0}}}}, nil),
		"blocks":          policy([]PolicyRule{{Name: "0", Target: web, Blocks: []netpolicy.Block{block("10.0.0.0/8", "10.0.0.0/10", "10.255.0.0/16"), block("fd00::/16")}, Ports: ports[:1]}}, nil),
		"everywhere":      policy([]PolicyRule{{Name: "0", Target: web, Blocks: []netpolicy.Block{block("0.0.0.0/0"), block("::/0")}}}, []PolicyRule{{Name: "0", Target: web, Blocks: []netpolicy.Block{block("0.0.0.0/0", "169.254.0.0/16")}}}),
		"all excepted":    policy([]PolicyRule{{Name: "0", Target: web, Blocks: []netpolicy.Block{block("10.1.0.0/16", "10.0.0.0/8")}}}, nil),
		"default":         {Kind: "NetworkPolicy", Namespace: "shop", Name: "p", Ingress: []PolicyRule{{Name: "0", Target: PolicyGroup{Selects: "x"}, Anyone: true}}},
		"group and block": policy(nil, []PolicyRule{{Name: "0", Target: web, Groups: []PolicyGroup{db}, Blocks: []netpolicy.Block{block("192.0.2.7/32")}, Ports: ports[3:4]}}),
	}
}

func TestPolicy(t *testing.T) {
	for name, p := range policies() {
		t.Run(name, func(t *testing.T) { check(t, PolicyRows(p)) })
	}
}

func isolations() map[string]Isolation {
	return map[string]Isolation{
		"default": {Services: true}, "secondary": {Network: "blue"},
		"tenant": {Network: "cluster_udn_red", Services: true, Nodes: addrs("10.20.0.2", "fd00:20::2")},
	}
}

func TestIsolation(t *testing.T) {
	for name, i := range isolations() {
		t.Run(name, func(t *testing.T) { check(t, IsolationRows(i)) })
	}
}

func TestPolicyMember(t *testing.T) {
	groups := []PolicyGroup{{Network: "blue", Selects: "all"}}
	rows := PolicyGroupRows(groups[0])
	check(t, append(rows, PolicyMember("vm/shop/web/blue", "blue", groups, []netpolicy.Direction{netpolicy.Egress})))
}

// TestPolicyMatchesAreParenthesized: northd does not look at a match, and ovn-controller ignores one that it cannot read.
func TestPolicyMatchesAreParenthesized(t *testing.T) {
	var rows []nb.Row
	for _, i := range isolations() {
		rows = append(rows, IsolationRows(i)...)
	}
	for _, p := range policies() {
		rows = append(rows, PolicyRows(p)...)
	}
	for _, row := range rows {
		acl, ok := row.Model.(*nb.ACL)
		if ok {
			balanced(t, acl.Match)
		}
	}
}

// balanced asserts that no level of parentheses mixes the two operators.
func balanced(t *testing.T, match string) {
	t.Helper()
	operators := []string{""}
	for _, word := range strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(match)) {
		top := len(operators) - 1
		switch word {
		case "(":
			operators = append(operators, "")
		case ")":
			operators = operators[:top]
		case "&&", "||":
			if operators[top] != "" && operators[top] != word {
				t.Errorf("%s mixes operators", match)
			}
			operators[top] = word
		}
	}
	if len(operators) != 1 {
		t.Errorf("%s: parentheses do not match", match)
	}
}
