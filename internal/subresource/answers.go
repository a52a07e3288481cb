package subresource

import (
	"encoding/json"
	"errors"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kinds are named in the singular in errors, which is unusual; clients compare the texts.
var (
	machineKind  = schema.GroupResource{Group: "kubevirt.io", Resource: "virtualmachine"}
	instanceKind = schema.GroupResource{Group: "kubevirt.io", Resource: "virtualmachineinstance"}
)

// published is an error in the words of published releases, which clients compare.
type published string

func (p published) Error() string { return string(p) }

func machineConflict(name, text string) error {
	return apierrors.NewConflict(machineKind, name, published(text))
}

func instanceConflict(name, text string) error {
	return apierrors.NewConflict(instanceKind, name, published(text))
}

// notServed is what the API server itself says of a path that it does not know.
func notServed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource",
	}}
}

// refuse answers with a Status object; an error that is none becomes an internal error.
func refuse(w http.ResponseWriter, err error) {
	var known apierrors.APIStatus
	if !errors.As(err, &known) {
		known = apierrors.NewInternalError(err)
	}
	status := known.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	writeJSON(w, int(status.Code), status)
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, "write the answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body) // nobody is left to tell when this fails
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}

// accepted answers a verb that only asks the controllers for something.
func accepted(w http.ResponseWriter, err error) {
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}
