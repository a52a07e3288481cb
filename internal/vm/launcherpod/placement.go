package launcherpod

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

func nodeSelector(r Request) map[string]string {
	selector := maps.Clone(r.VMI.Spec.NodeSelector)
	if selector == nil {
		selector = map[string]string{}
	}
	selector[virtv1.NodeSchedulable] = "true" // an agent lives there
	if arch := r.VMI.Spec.Architecture; arch != "" {
		selector[corev1.LabelArchStable] = arch
	}
	if r.Migration != nil {
		for key, value := range r.Migration.NodeSelector {
			if _, taken := selector[key]; !taken { // it narrows the machine's own, and cannot lift it
				selector[key] = value
			}
		}
	}
	return selector
}

// affinity is the machine's own and, for a migration's target, never the source's node.
func affinity(r Request) *corev1.Affinity {
	a := r.VMI.Spec.Affinity.DeepCopy()
	if r.Migration == nil || r.Migration.SourceNode == "" {
		return a
	}
	elsewhere := corev1.NodeSelectorRequirement{
		Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: []string{r.Migration.SourceNode},
	}
	if a == nil {
		a = &corev1.Affinity{}
	}
	if a.NodeAffinity == nil {
		a.NodeAffinity = &corev1.NodeAffinity{}
	}
	required := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		required = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{}}}
		a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = required
	}
	for i := range required.NodeSelectorTerms { // terms are alternatives: each must exclude the node
		term := &required.NodeSelectorTerms[i]
		term.MatchExpressions = append(term.MatchExpressions, elsewhere)
	}
	return a
}
