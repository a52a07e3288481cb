package tenancy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ovnv1 "patchbay/api/ovn/v1"
)

// Who writes which condition.
const (
	createdOwner   = "user-defined-network-controller"
	allocatedOwner = "NetworkClusterController"
)

// reasonAllocationFailed is the reason of the event that tells each failure.
const reasonAllocationFailed = "NetworkAllocationFailed"

// result is the outcome of a network in one namespace.
type result struct {
	namespace string
	outcome
}

// created says whether a network's definitions exist.
func created(w wish, results []result) metav1.Condition {
	var errs []error
	var there, leaving []string
	for _, r := range results {
		switch r.state {
		case present:
			there = append(there, r.namespace)
		case going:
			leaving = append(leaving, r.namespace+"/"+w.object.GetName())
		}
		if r.err != nil {
			errs = append(errs, w.inPlace(r))
		}
	}
	if len(results) == 0 && w.err != nil {
		errs = append(errs, w.err)
	}
	if w.held != nil {
		errs = append(errs, w.held)
	}
	slices.Sort(there)
	slices.Sort(leaving)
	c := metav1.Condition{Type: ovnv1.NetworkCreated, Status: metav1.ConditionFalse}
	switch {
	case len(errs) > 0:
		c.Reason, c.Message = w.syncError(), errors.Join(errs...).Error()
	case w.leaving() || w.kind == namespaced && len(there) == 0 || len(leaving) > 0:
		c.Reason, c.Message = ovnv1.ReasonDefinitionDeleted, w.deleting(leaving)
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, ovnv1.ReasonDefinitionCreated, w.exists(there)
	}
	return c
}

// inPlace says where an error is, when there may be several.
func (w wish) inPlace(r result) error {
	if w.kind == namespaced {
		return r.err
	}
	return fmt.Errorf("namespace %s: %w", r.namespace, r.err)
}

func (w wish) syncError() string {
	if w.kind == namespaced {
		return ovnv1.ReasonSyncError
	}
	return ovnv1.ReasonDefinitionSyncError
}

func (w wish) exists(namespaces []string) string {
	if w.kind == namespaced {
		return "NetworkAttachmentDefinition has been created"
	}
	return "NetworkAttachmentDefinition has been created in following namespaces: [" + strings.Join(namespaces, ", ") + "]"
}

func (w wish) deleting(definitions []string) string {
	if w.kind == namespaced {
		return "NetworkAttachmentDefinition is being deleted"
	}
	return fmt.Sprintf("NetworkAttachmentDefinition are being deleted: %v", definitions)
}

// allocated says whether the overlay has the network. Nothing is said before anything is known.
func allocated(known bool, failure error) (metav1.Condition, bool) {
	c := metav1.Condition{Type: ovnv1.NetworkAllocationSucceeded}
	switch {
	case failure != nil:
		c.Status, c.Reason = metav1.ConditionFalse, ovnv1.ReasonInternalError
		c.Message = "Network allocation failed for at least one node: " + everyNode + ", check UDN events for more info."
	case known:
		c.Status, c.Reason = metav1.ConditionTrue, ovnv1.ReasonAllocationSucceeded
		c.Message = "Network allocation succeeded for all synced nodes."
	default:
		return c, false
	}
	return c, true
}

// everyNode stands where published releases name a node: the overlay is one database for all of them.
const everyNode = "all"

// transition completes a condition and tells whether it differs from the one that is known.
func transition(known []metav1.Condition, c metav1.Condition, now time.Time) (metav1.Condition, bool) {
	c.LastTransitionTime = metav1.NewTime(now)
	old := meta.FindStatusCondition(known, c.Type)
	if old == nil {
		return c, true
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	return c, old.Status != c.Status || old.Reason != c.Reason || old.Message != c.Message
}
