package hyperconverged

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// nodesSaying are nodes made of what their agents say, in order; "-" is a node without an agent.
func nodesSaying(said ...string) (nodes []corev1.Node) {
	for i, text := range said {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i+1), Annotations: map[string]string{}}}
		if text != "-" {
			n.Labels = map[string]string{virtv1.NodeSchedulable: "true"}
			n.Annotations[hcov1beta1.MigrationNetworkAnnotation] = text
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func TestMigrationNetwork(t *testing.T) {
	const one, two = `{"network":"net","address":"10.200.5.1"}`, `{"network":"net","address":"10.200.5.2"}`
	bad := func(problem string) string { return `{"network":"net","problem":"` + problem + `"}` }
	for name, c := range map[string]struct {
		said []string
		want string
	}{
		"joined":         {[]string{one, two, "-"}, "True NodesJoined migrations take the network net; on it are node-1, node-2"},
		"one is awaited": {[]string{one, ""}, "False NodesJoining waiting for node-2 to join the network net"},
		"still on another": {[]string{`{"network":"old","address":"10.0.0.1"}`, two},
			"False NodesJoining waiting for node-1 to join the network net"},
		"no node":    {nil, "False NodesJoining waiting for nodes that could join the network net: no agent runs"},
		"unreadable": {[]string{"{"}, "False NodesJoining waiting for node-1 to join the network net"},
		"a problem":  {[]string{one, bad("node node-2 cannot join it: no address")}, "False NodesNotJoined migrations cannot take the network net: node-2: cannot join it: no address"},
		"the same for all": {[]string{bad("there is no definition"), bad("there is no definition")},
			"False NodesNotJoined migrations cannot take the network net: node-1, node-2: there is no definition"},
		"one address twice": {[]string{one, one},
			"False NodesNotJoined migrations cannot take the network net: node-2: has the address 10.200.5.1 of node-1; give the definition an ipam that spans the cluster, such as whereabouts"},
		"many": {strings.Split(strings.Repeat(";", 7), ";"), "False NodesJoining waiting for node-1, node-2, node-3, node-4, node-5 and 3 more to join the network net"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hcov1beta1.HyperConverged{}
			h.Spec.LiveMigrationConfig = &hcov1beta1.LiveMigrationConfig{Network: new("net")}
			got := migrationNetwork(h, nodesSaying(c.said...))
			if text := fmt.Sprintf("%s %s %s", got.Status, got.Reason, got.Message); text != c.want {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
			for _, condition := range conditions(h, nil, got) {
				if condition.Type == "Degraded" && (condition.Status == metav1.ConditionTrue) != (got.Reason == reasonNotJoined) {
					t.Errorf("%s is %s", condition.Type, condition.Status)
				}
			}
		})
	}
	if got := migrationNetwork(&hcov1beta1.HyperConverged{}, nodesSaying(one)); got != nil {
		t.Errorf("without a network it says %v", got)
	}
}
