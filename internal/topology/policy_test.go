package topology

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/ovn/nb"
)

func block(cidr string, except ...string) IPBlock {
	return IPBlock{CIDR: netip.MustParsePrefix(cidr), Except: prefixes(except...)}
}

func policies() map[string]Policy {
	web := PolicyGroup{Network: "blue", Selects: "pods app=web of namespace shop"}
	db := PolicyGroup{Network: "blue", Selects: "pods app=db of all namespaces"}
	policy := func(ingress, egress []PolicyRule) Policy {
		return Policy{Kind: "NetworkPolicy", Namespace: "shop", Name: "p", Network: "blue", Ingress: ingress, Egress: egress}
	}
	ports := []PolicyPorts{{"tcp", 80, 80}, {"tcp", 443, 443}, {"tcp", 8000, 8100}, {"udp", 53, 53}, {"sctp", 0, 0}, {"tcp", 80, 80}}
	return map[string]Policy{
		"nobody":          policy([]PolicyRule{{Target: web}}, nil),
		"anyone":          policy([]PolicyRule{{Target: web, Anyone: true}}, []PolicyRule{{Target: web, Anyone: true}}),
		"groups":          policy([]PolicyRule{{Target: web, Groups: []PolicyGroup{web, db}}}, []PolicyRule{{Target: web, Groups: []PolicyGroup{db}}}),
		"ports":           policy([]PolicyRule{{Target: web, Groups: []PolicyGroup{db}, Ports: ports}}, []PolicyRule{{Target: web, Anyone: true, Ports: ports[:2]}}),
		"every number":    policy([]PolicyRule{{Target: web, Anyone: true, Ports: []PolicyPorts{{"tcp", 80, 80}, {"tcp", 0, 0}}}}, nil),
		"blocks":          policy([]PolicyRule{{Target: web, Blocks: []IPBlock{block("10.0.0.0/8", "10.0.0.0/10", "10.255.0.0/16"), block("fd00::/16")}, Ports: ports[:1]}}, nil),
		"everywhere":      policy([]PolicyRule{{Target: web, Blocks: []IPBlock{block("0.0.0.0/0"), block("::/0")}}}, []PolicyRule{{Target: web, Blocks: []IPBlock{block("0.0.0.0/0", "169.254.0.0/16")}}}),
		"all excepted":    policy([]PolicyRule{{Target: web, Blocks: []IPBlock{block("10.1.0.0/16", "10.0.0.0/8")}}}, nil),
		"default":         {Kind: "NetworkPolicy", Namespace: "shop", Name: "p", Ingress: []PolicyRule{{Target: PolicyGroup{Selects: "x"}, Anyone: true}}},
		"group and block": policy(nil, []PolicyRule{{Target: web, Groups: []PolicyGroup{db}, Blocks: []IPBlock{block("192.0.2.7/32")}, Ports: ports[3:4]}}),
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
	check(t, append(rows, PolicyMember("vm/shop/web/blue", "blue", groups, []Direction{Egress})))
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

func TestRangesOfABlock(t *testing.T) {
	cases := map[string]struct {
		block IPBlock
		want  []string
	}{
		"whole":             {block("10.0.0.0/8"), []string{"10.0.0.0/8"}},
		"host bits":         {block("10.1.2.3/8"), []string{"10.0.0.0/8"}},
		"one half":          {block("10.0.0.0/8", "10.0.0.0/9"), []string{"10.128.0.0/9"}},
		"middle":            {block("10.0.0.0/30", "10.0.0.1/32"), []string{"10.0.0.0/32", "10.0.0.2/31"}},
		"two":               {block("10.0.0.0/30", "10.0.0.1/32", "10.0.0.2/32"), []string{"10.0.0.0/32", "10.0.0.3/32"}},
		"outside":           {block("10.0.0.0/30", "192.0.2.0/24"), []string{"10.0.0.0/30"}},
		"other family":      {block("10.0.0.0/30", "::/0"), []string{"10.0.0.0/30"}},
		"everything":        {block("10.0.0.0/30", "0.0.0.0/0"), nil},
		"six":               {block("fd00::/126", "fd00::3/128"), []string{"fd00::/127", "fd00::2/128"}},
		"exceptions nested": {block("10.0.0.0/29", "10.0.0.4/30", "10.0.0.6/31"), []string{"10.0.0.0/30"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range c.block.ranges() {
				got = append(got, p.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRangesHoldExactlyTheBlock compares with the definition for every address of a small range.
func TestRangesHoldExactlyTheBlock(t *testing.T) {
	b := block("10.0.0.0/24", "10.0.0.16/28", "10.0.0.77/32", "10.0.0.128/26")
	for a := b.CIDR.Addr(); b.CIDR.Contains(a); a = a.Next() {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if got, want := slices.ContainsFunc(b.ranges(), in), !slices.ContainsFunc(b.Except, in); got != want {
			t.Errorf("%s: in %v, want %v", a, got, want)
		}
	}
}
