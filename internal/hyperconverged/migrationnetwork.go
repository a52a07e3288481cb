package hyperconverged

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// conditionMigrationNetwork is there while a network for migrations is wanted.
const (
	conditionMigrationNetwork = "MigrationNetworkReady"

	reasonJoined    = "NodesJoined"
	reasonJoining   = "NodesJoining"
	reasonNotJoined = "NodesNotJoined"
)

// shown is how many nodes a message names.
const shown = 5

// migrationNetwork sums up what nodes say of the network of migrations that is wanted. Without one there is nothing to say.
func migrationNetwork(h *hcov1beta1.HyperConverged, nodes []corev1.Node) *metav1.Condition {
	virtualization, _ := h.Spec.Settings()
	m := virtualization.LiveMigrationConfig
	if m == nil || m.Network == nil || *m.Network == "" {
		return nil
	}
	wanted := *m.Network
	var joined, awaited []string
	problems := grouped{}
	holders := map[string]string{}
	for _, node := range nodes {
		if node.Labels[virtv1.NodeSchedulable] == "" {
			continue // no agent runs there
		}
		var said hcov1beta1.MigrationMember
		_ = json.Unmarshal([]byte(node.Annotations[hcov1beta1.MigrationNetworkAnnotation]), &said)
		switch other := holders[said.Address]; {
		case said.Network != wanted:
			awaited = append(awaited, node.Name)
		case said.Problem != "":
			problems.add(strings.TrimPrefix(said.Problem, "node "+node.Name+" "), node.Name)
		case said.Address != "" && other != "":
			problems.add(fmt.Sprintf("has the address %s of %s; give the definition an ipam that spans the cluster, such as whereabouts", said.Address, other), node.Name)
		default:
			holders[said.Address] = node.Name
			joined = append(joined, node.Name)
		}
	}
	c := &metav1.Condition{Type: conditionMigrationNetwork, Status: metav1.ConditionFalse}
	switch {
	case len(problems) > 0:
		c.Reason, c.Message = reasonNotJoined, fmt.Sprintf("migrations cannot take the network %s: %s", wanted, problems)
	case len(awaited) > 0:
		c.Reason, c.Message = reasonJoining, fmt.Sprintf("waiting for %s to join the network %s", list(awaited), wanted)
	case len(joined) == 0:
		c.Reason, c.Message = reasonJoining, fmt.Sprintf("waiting for nodes that could join the network %s: no agent runs", wanted)
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, reasonJoined, fmt.Sprintf("migrations take the network %s; on it are %s", wanted, list(joined))
	}
	return c
}

// list names nodes, but not hundreds.
func list(nodes []string) string {
	slices.Sort(nodes)
	if len(nodes) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(nodes[:shown], ", "), len(nodes)-shown)
	}
	return strings.Join(nodes, ", ")
}

// grouped are nodes by what is wrong with them.
type grouped map[string][]string

func (g grouped) add(problem, node string) { g[problem] = append(g[problem], node) }

func (g grouped) String() string {
	var all []string
	for problem, nodes := range g {
		all = append(all, list(nodes)+": "+problem)
	}
	slices.Sort(all)
	if len(all) > shown {
		all = append(all[:shown], fmt.Sprintf("and %d more problems", len(all)-shown))
	}
	return strings.Join(all, "; ")
}

// nodeMatters: how many nodes there are, whether an agent runs there, and what it says of the network of migrations.
var nodeMatters = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld, e.ObjectNew
	return before.GetAnnotations()[hcov1beta1.MigrationNetworkAnnotation] != after.GetAnnotations()[hcov1beta1.MigrationNetworkAnnotation] ||
		(before.GetLabels()[virtv1.NodeSchedulable] == "") != (after.GetLabels()[virtv1.NodeSchedulable] == "")
}}
