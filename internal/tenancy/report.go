package tenancy

import (
	"cmp"
	"context"
	"fmt"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
)

func compare[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }

// networkID is what the network controller writes on the definitions of a network that it carries.
const networkID = "k8s.ovn.org/network-id"

// report writes what differs in the object's conditions, and tells it aloud.
func (t *Tenancy) report(ctx context.Context, w wish, results []result) error {
	condition := created(w, results)
	if err := t.condition(ctx, w, condition, createdOwner, condition.Reason, condition.Message); err != nil {
		return err
	}
	if w.leaving() {
		return nil
	}
	carried, err := t.carried(ctx, w)
	if err != nil {
		return err
	}
	failure := t.failed.of(w.name)
	condition, known := allocated(carried, failure)
	if !known {
		return nil
	}
	return t.condition(ctx, w, condition, allocatedOwner, reasonAllocationFailed, fmt.Sprintf("Error occurred for node %s: %v", everyNode, failure))
}

// carried tells whether the network controller took a network up.
func (t *Tenancy) carried(ctx context.Context, w wish) (bool, error) {
	var own nadv1.NetworkAttachmentDefinitionList
	if err := t.client.List(ctx, &own, client.MatchingFields{definitionsByOwner: string(w.object.GetUID())}); err != nil {
		return false, fmt.Errorf("list the definitions of %s: %w", w.network.Name, err)
	}
	for _, d := range own.Items {
		if d.Annotations[networkID] != "" {
			return true, nil
		}
	}
	return false, nil
}

// condition applies one condition by its own field manager. A bad one is an event too, each time that it says something new.
func (t *Tenancy) condition(ctx context.Context, w wish, c metav1.Condition, owner, reason, text string) error {
	c, changed := transition(w.conditions, c, t.Now())
	if !changed {
		return nil
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&c)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{fields}}}}
	u.SetGroupVersionKind(ovnv1.GroupVersion.WithKind(w.kind))
	u.SetName(w.object.GetName())
	u.SetNamespace(w.object.GetNamespace())
	u.SetUID(w.object.GetUID()) // not one of its name that came after it
	err = t.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(owner), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("write the condition %s of %s %s: %w", c.Type, w.kind, client.ObjectKeyFromObject(w.object), err)
	}
	if c.Status == metav1.ConditionFalse && !w.leavingQuietly(c) {
		t.events.Eventf(w.object, nil, corev1.EventTypeWarning, reason, reason, "%s", text[:min(len(text), longestNote)])
	}
	return nil
}

// longestNote is how long in bytes the API server lets an event's text be, less what it may cut a character by.
const longestNote = 1020

// leavingQuietly tells whether a condition only says that the user's deletion goes on.
func (w wish) leavingQuietly(c metav1.Condition) bool {
	return c.Reason == ovnv1.ReasonDefinitionDeleted || w.held != nil
}
