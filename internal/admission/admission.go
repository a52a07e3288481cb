// Package admission decides which objects the API server may store: it fills in what users leave out and refuses what cannot
// work, with the texts that clients of published KubeVirt releases know (spec: VM and VMI defaulting, validation and updates).
//
// The rules are pure functions of objects and a Policy; controllers call the same functions. Server puts them behind the API
// server's webhooks. The package must not look at the cluster from a rule: what a rule needs is a parameter.
package admission

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxCauses is how many causes an answer lists; the rest are counted.
const maxCauses = 10

// Causes are the reasons for a refusal, in the order the rules are evaluated. None means that the object is accepted.
type Causes []metav1.StatusCause

func (c *Causes) add(reason metav1.CauseType, at *field.Path, format string, args ...any) {
	cause := metav1.StatusCause{Type: reason, Message: fmt.Sprintf(format, args...)}
	if at != nil {
		cause.Field = at.String()
	}
	*c = append(*c, cause)
}

func (c *Causes) invalid(at *field.Path, format string, args ...any) {
	c.add(metav1.CauseTypeFieldValueInvalid, at, format, args...)
}

func (c *Causes) required(at *field.Path, format string, args ...any) {
	c.add(metav1.CauseTypeFieldValueRequired, at, format, args...)
}

func (c *Causes) duplicate(at *field.Path, format string, args ...any) {
	c.add(metav1.CauseTypeFieldValueDuplicate, at, format, args...)
}

func (c *Causes) notSupported(at *field.Path, format string, args ...any) {
	c.add(metav1.CauseTypeFieldValueNotSupported, at, format, args...)
}

func (c *Causes) notFound(at *field.Path, format string, args ...any) {
	c.add(metav1.CauseTypeFieldValueNotFound, at, format, args...)
}

// Status is the answer to the client: 422 with at most ten causes, all of their texts joined. It must not be asked of no causes.
func (c Causes) Status() *metav1.Status {
	shown := c[:min(len(c), maxCauses)]
	texts := make([]string, len(shown))
	for i, cause := range shown {
		texts[i] = cause.Message
	}
	message := strings.Join(texts, ", ")
	if more := len(c) - len(shown); more > 0 {
		message += fmt.Sprintf(", and %d more validation errors", more)
	}
	return &metav1.Status{
		Status:  metav1.StatusFailure,
		Message: message,
		Reason:  metav1.StatusReasonInvalid,
		Code:    422,
		Details: &metav1.StatusDetails{Causes: shown},
	}
}
