package admission

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"

	"gomodules.xyz/jsonpatch/v2"
	mergepatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// decide answers an admission request; an error means that the request could not be understood.
type decide func(*http.Request, *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error)

// maxReview is the largest review that is read, in bytes: two objects of the size that etcd takes, and some room.
const maxReview = 8 << 20

// review turns a decision into a webhook of admission.k8s.io/v1.
func review(d decide) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in admissionv1.AdmissionReview
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReview)).Decode(&in); err != nil || in.Request == nil {
			http.Error(w, fmt.Sprintf("send an AdmissionReview of admission.k8s.io/v1 with a request: %v", err), http.StatusBadRequest)
			return
		}
		response, err := d(r, in.Request)
		if err != nil {
			response = &admissionv1.AdmissionResponse{Result: badRequest(err)}
		}
		response.UID = in.Request.UID
		in.Request, in.Response = nil, response
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(in) // the API server went away when this fails, and asks again
	}
}

func badRequest(err error) *metav1.Status {
	return &metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Reason: metav1.StatusReasonBadRequest, Code: http.StatusBadRequest}
}

// answer accepts when there are no causes.
func answer(causes Causes, warnings ...string) *admissionv1.AdmissionResponse {
	if len(causes) > 0 {
		return &admissionv1.AdmissionResponse{Result: causes.Status(), Warnings: warnings}
	}
	return &admissionv1.AdmissionResponse{Allowed: true, Warnings: warnings}
}

// objects decodes the old object (nil on creation) and the new one.
func objects[T any](r *admissionv1.AdmissionRequest) (old, updated *T, err error) {
	updated = new(T)
	if err := json.Unmarshal(r.Object.Raw, updated); err != nil {
		return nil, nil, fmt.Errorf("read the %s: %w", r.Kind.Kind, err)
	}
	if r.Operation != admissionv1.Update {
		return nil, updated, nil
	}
	old = new(T)
	if err := json.Unmarshal(r.OldObject.Raw, old); err != nil {
		return nil, nil, fmt.Errorf("read the stored %s: %w", r.Kind.Kind, err)
	}
	return old, updated, nil
}

// patched accepts an object with what changed between before and after, and nothing else: what the Go types do not know, or
// would write differently, stays as the user sent it.
func patched[T any](raw []byte, before, after *T) (*admissionv1.AdmissionResponse, error) {
	if reflect.DeepEqual(before, after) {
		return &admissionv1.AdmissionResponse{Allowed: true}, nil
	}
	from, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	to, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	changes, err := mergepatch.CreateMergePatch(from, to)
	if err != nil {
		return nil, err
	}
	merged, err := mergepatch.MergePatch(raw, changes)
	if err != nil {
		return nil, err
	}
	operations, err := jsonpatch.CreatePatch(raw, merged)
	if err != nil {
		return nil, err
	}
	patch, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	kind := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{Allowed: true, Patch: patch, PatchType: &kind}, nil
}
