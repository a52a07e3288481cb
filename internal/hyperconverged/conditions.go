package hyperconverged

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

// Conditions and their reasons, in the words of published operators.
const (
	conditionTainted = "TaintedConfiguration"

	reasonCompleted = "ReconcileCompleted"
	reasonDegraded  = "NetworkAddonsConfigDegraded"
	reasonTainted   = "UnsupportedFeatureAnnotation"

	reasonMigrations = "MigrationNetworkNotReady"

	textCompleted = "Reconcile completed successfully"
	textTainted   = "Unsupported feature was activated via an HCO annotation"
)

// conditions are what the status says of an object. problem is a setting that cannot be followed; the one before it stays. network says
// how nodes get on with the network of migrations; nil when none is wanted.
func conditions(h *hcov1beta1.HyperConverged, problem error, network *metav1.Condition) []metav1.Condition {
	all := []metav1.Condition{
		{Type: "ReconcileComplete", Status: metav1.ConditionTrue, Reason: reasonCompleted, Message: textCompleted},
		{Type: "Available", Status: metav1.ConditionTrue, Reason: reasonCompleted, Message: textCompleted},
		{Type: "Progressing", Status: metav1.ConditionFalse, Reason: reasonCompleted, Message: textCompleted},
		{Type: "Degraded", Status: metav1.ConditionFalse, Reason: reasonCompleted, Message: textCompleted},
		{Type: "Upgradeable", Status: metav1.ConditionTrue, Reason: reasonCompleted, Message: textCompleted},
	}
	degraded := &all[3]
	if network != nil && network.Reason == reasonNotJoined {
		degraded.Status, degraded.Reason, degraded.Message = metav1.ConditionTrue, reasonMigrations, network.Message
	}
	if problem != nil {
		degraded.Status, degraded.Reason, degraded.Message = metav1.ConditionTrue, reasonDegraded, problem.Error()
	}
	if network != nil {
		all = append(all, *network)
	}
	if tainted(h) {
		all = append(all, metav1.Condition{Type: conditionTainted, Status: metav1.ConditionTrue, Reason: reasonTainted, Message: textTainted})
	}
	return all
}

// tainted says that an object changes what follows from it behind its fields' back.
func tainted(h *hcov1beta1.HyperConverged) bool {
	_, machines := h.Annotations[KubeVirtPatchAnnotation]
	_, networks := h.Annotations[NetworkPatchAnnotation]
	return machines || networks
}
